"""TACA's attention: in one joint softmax, the logits between image queries and text keys are multiplied by gamma.

The factor depends only on (is the query an image token?) x (is the key a text token?), so it folds into the keys once
the queries are split:

    image rows = attention(Q_image, [gamma K_text ; K_image], V)
    text rows  = attention(Q_text,  [      K_text ; K_image], V)

since q . (gamma k) = gamma (q . k). Every query row is computed once, as in stock attention, by the active kernel; the only extra
memory is one copy of the keys. The paper's own "selective recomposition" runs two full attentions instead.
"""

from typing import Any

import torch
from torch import Tensor

from components.errors import ParameterError
from components.taca.config import Effect, Queries


def temperature_adjusted_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gamma: float | Tensor,
    text: slice,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    effect: Effect = "temperature",
    queries: Queries = "image",
    backend: Any = None,
    parallel_config: Any = None,
) -> Tensor:
    """Compute joint attention with the image-to-text logits multiplied by `gamma` (arXiv 2506.07986, Eq. 10).

    query, key, value: (B, S, H, D) over the joint sequence, after query/key normalisation (before it, gamma would
    cancel) and rotary embedding. text: the slice of the sequence that holds the text tokens, at its beginning (FLUX)
    or its end (SD3). gamma: a number, or a tensor that broadcasts to the text keys (B, T, H, 1), e.g. (B, 1, 1, 1)
    per sample. attn_mask: as diffusers' dispatcher takes it, (B, S) over keys or broadcastable to (B, H, S, S).
    scale: the softmax scale, default 1/sqrt(D). backend: diffusers' attention backend, default the active one.

    Control arms: effect "bias" adds log(gamma) to the logits instead (the kernel must take a float mask); queries
    "text" acts on text queries x image keys, and gamma then broadcasts to the image keys.

    Returns (B, S, H, D) in query's dtype. Exact and differentiable in query, key, value and gamma. A gamma that is the number 1,
    or a sequence that is all text or all image, is one stock attention call. Raises `ParameterError` for shapes that do not fit
    and for `parallel_config` (context parallelism shards the sequence that `text` indexes).
    """
    if parallel_config is not None:
        raise ParameterError("TACA: context parallelism shards the joint sequence and is not supported; disable it")
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    length = key.shape[1]
    start, stop = _text_range(query, key, text)

    def attend(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        return dispatch_attention_fn(q, k, value, attn_mask=mask, scale=scale, backend=backend)

    if (not isinstance(gamma, Tensor) and gamma == 1) or stop - start in (0, length):
        return attend(query, key, attn_mask)
    if isinstance(gamma, Tensor) and gamma.ndim not in (0, 4):
        raise ParameterError(
            f"gamma has shape {tuple(gamma.shape)}: must be a scalar or broadcast to (B, T, H, 1); "
            "reshape (B,) to (B, 1, 1, 1)"
        )

    text_rows = slice(start, stop)
    image_rows = slice(stop, length) if start == 0 else slice(0, start)
    adjusted, plain = (image_rows, text_rows) if queries == "image" else (text_rows, image_rows)  # query rows
    columns = plain  # the keys whose logits change are those of the other modality

    adjusted_mask = _mask_rows(attn_mask, query, adjusted)
    if effect == "bias":
        adjusted_rows = attend(query[:, adjusted], key, _with_bias(adjusted_mask, gamma, query, columns))
    else:
        adjusted_rows = attend(query[:, adjusted], _scaled(key, gamma, columns), adjusted_mask)
    plain_rows = attend(query[:, plain], key, _mask_rows(attn_mask, query, plain))
    return torch.cat([adjusted_rows, plain_rows] if adjusted.start == 0 else [plain_rows, adjusted_rows], dim=1)


def _scaled(key: Tensor, gamma: float | Tensor, columns: slice) -> Tensor:
    """Return the keys (B, S, H, D) with those at `columns`, one end of the sequence, multiplied by gamma."""
    # The product is rounded once: a float32 gamma promotes bfloat16 keys, and 1.2 is never rounded to bfloat16 itself.
    scaled = (key[:, columns] * gamma).to(key.dtype)
    if columns.start == 0:
        return torch.cat([scaled, key[:, columns.stop :]], dim=1)
    return torch.cat([key[:, : columns.start], scaled], dim=1)


def _with_bias(mask: Tensor | None, gamma: float | Tensor, query: Tensor, columns: slice) -> Tensor:
    """Return a mask for some query rows with log(gamma) added over the keys at `columns`: (B, H or 1, 1, S) without `mask`."""
    batch, length = query.shape[:2]
    exact = torch.promote_types(query.dtype, torch.float32)
    factor = torch.as_tensor(gamma, dtype=exact, device=query.device)
    bias = (factor if factor.ndim else factor.view(1, 1, 1, 1)).log()
    bias = bias.expand(batch, columns.stop - columns.start, -1, 1)
    before, after = columns.start, length - columns.stop
    row = torch.nn.functional.pad(bias.permute(0, 2, 3, 1), (before, after)).to(query.dtype)  # (B, H or 1, 1, S)
    if mask is None:
        return row
    if mask.ndim == 2 and mask.shape == (batch, length):
        mask = mask[:, None, None, :]
    return row.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else row + mask


def _text_range(query: Tensor, key: Tensor, text: slice) -> tuple[int, int]:
    """Return the text tokens as (start, stop), checked to lie at one end of a joint sequence."""
    length = key.shape[1]
    if query.shape[1] != length:
        raise ParameterError(f"TACA needs joint attention: {query.shape[1]} queries against {length} keys")
    start, stop, step = text.indices(length)
    stop = max(start, stop)
    if step != 1 or not (start == 0 or stop == length):
        raise ParameterError(
            f"text = {text}: must be a contiguous slice at the beginning or the end of {length} tokens"
        )
    return start, stop


def _mask_rows(mask: Tensor | None, query: Tensor, rows: slice) -> Tensor | None:
    """Return the part of a mask for some query rows; a mask over keys alone holds for every row."""
    batch, length = query.shape[:2]
    if mask is None or mask.ndim < 2 or (mask.ndim == 2 and mask.shape[0] == batch) or mask.shape[-2] != length:
        return mask
    selected = mask[..., rows, :]
    # A 2-d block with as many rows as the batch has samples would be read as a (B, S) key mask.
    return selected[None, None] if selected.ndim == 2 else selected
