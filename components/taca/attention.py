"""TACA's attention: in one joint softmax, the logits between image queries and text keys are multiplied by gamma.

The factor depends only on (is the query an image token?) x (is the key a text token?), so it folds into the keys once
the queries are split:

    image rows = attention(Q_image, [gamma K_text ; K_image], V)
    text rows  = attention(Q_text,  [      K_text ; K_image], V)

since q . (gamma k) = gamma (q . k). Every query row is computed once, as in stock attention, by the active kernel; the only extra
memory is one copy of the keys. The paper's own "selective recomposition" runs two full attentions instead.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from components.errors import ParameterError
from components.taca.config import Effect, Queries
from components.taca.placement import Block, Columns, Contiguous, Segment, has_tokens

Attend = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Attention of query (B, R, H, D) over keys (B, S, H, D) and their values, with a mask: (B, R, H, D)."""


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
    refuse_parallel(parallel_config)
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    def attend(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        return dispatch_attention_fn(q, k, value, attn_mask=mask, scale=scale, backend=backend)

    start, stop, step = text.indices(key.shape[1])
    if step != 1 or not (start == 0 or stop == key.shape[1]):
        raise ParameterError(
            f"text = {text}: must be a contiguous slice at the beginning or the end of {key.shape[1]} tokens"
        )
    block = Contiguous(text).block(queries, query.shape[1], key.shape[1])
    return adjusted_attention(attend, query, key, gamma, block, attn_mask=attn_mask, effect=effect)


def refuse_parallel(parallel_config: Any) -> None:
    """Raise `ParameterError` for context parallelism."""
    if parallel_config is not None:
        raise ParameterError("TACA: context parallelism shards the joint sequence and is not supported; disable it")


def adjusted_attention(
    attend: Attend,
    query: Tensor,
    key: Tensor,
    gamma: float | Tensor,
    block: Block | None,
    *,
    attn_mask: Tensor | None = None,
    effect: Effect = "temperature",
) -> Tensor:
    """Compute attention with the logits of one block (its rows x its columns) multiplied by `gamma`.

    attend: the attention to use, over the values of `key`. block: None for stock attention. gamma: broadcasts to the keys of the
    block's columns (B, T, H, 1). The rest is as in `temperature_adjusted_attention`.
    """
    if block is None or block.is_empty or (not isinstance(gamma, Tensor) and gamma == 1):
        return attend(query, key, attn_mask)
    if isinstance(gamma, Tensor) and gamma.ndim not in (0, 4):
        raise ParameterError(
            f"gamma has shape {tuple(gamma.shape)}: must be a scalar or broadcast to (B, T, H, 1); "
            "reshape (B,) to (B, 1, 1, 1)"
        )
    if effect == "bias":

        def with_bias(mask: Tensor | None) -> Tensor | None:
            return _with_bias(mask, gamma, query, key.shape[1], block.columns)

        adjusted = _rows(attend, query, key, attn_mask, block, plain=False, change=with_bias)
    else:
        adjusted = _rows(attend, query, _scaled(key, gamma, block.columns), attn_mask, block, plain=False)
    plain = _rows(attend, query, key, attn_mask, block, plain=True)
    pieces = []
    for segment in block.segments:
        if segment.samples is None:
            pieces.append(next(adjusted if segment.adjusted else plain))
        else:  # rows that are adjusted in some samples only are computed both ways
            pieces.append(torch.where(segment.samples[:, :, None, None], next(adjusted), next(plain)))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _rows(
    attend: Attend,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    block: Block,
    *,
    plain: bool,
    change: Callable[[Tensor | None], Tensor | None] = lambda mask: mask,
) -> Iterator[Tensor]:
    """Attend with the query rows of the plain, or of the adjusted, segments in one call; give the result of each."""
    segments = [segment for segment in block.segments if segment.samples is not None or segment.adjusted != plain]
    if not segments:
        return iter(())
    rows = _taken(query, segments)
    result = attend(rows, key, change(_mask_rows(mask, query, segments)))
    return iter(result.split([segment.stop - segment.start for segment in segments], dim=1))


def _taken(tensor: Tensor, segments: list[Segment], dim: int = 1) -> Tensor:
    parts = [tensor.narrow(dim, segment.start, segment.stop - segment.start) for segment in segments]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def _scaled(key: Tensor, gamma: float | Tensor, columns: Columns) -> Tensor:
    """Return the keys (B, S, H, D) with those at `columns` multiplied by gamma."""
    # The product is rounded once: a float32 gamma promotes bfloat16 keys, and 1.2 is never rounded to bfloat16 itself.
    if isinstance(columns, Tensor):
        return torch.where(columns[:, :, None, None], key * gamma, key).to(key.dtype)
    length = key.shape[1]
    start, stop = _ends(columns, length)
    scaled = (key.narrow(1, start, stop - start) * gamma).to(key.dtype)
    before = [key[:, :start]] if start else []
    after = [key[:, stop:]] if has_tokens(stop, length) else []
    return torch.cat([*before, scaled, *after], dim=1)


def _ends(columns: slice, length: int) -> tuple[int, int]:
    return columns.start, length if columns.stop is None else columns.stop


def _with_bias(mask: Tensor | None, gamma: float | Tensor, query: Tensor, length: int, columns: Columns) -> Tensor:
    """Return a mask for some query rows with log(gamma) added over the keys at `columns`: (B, H or 1, 1, S) without `mask`."""
    batch = query.shape[0]
    exact = torch.promote_types(query.dtype, torch.float32)
    factor = torch.as_tensor(gamma, dtype=exact, device=query.device)
    bias = (factor if factor.ndim else factor.view(1, 1, 1, 1)).log()
    if isinstance(columns, Tensor):
        bias = torch.where(columns[:, :, None, None], bias, torch.zeros_like(bias)).expand(batch, -1, -1, 1)
        row = bias.permute(0, 2, 3, 1).to(query.dtype)
    else:
        start, stop = _ends(columns, length)
        bias = bias.expand(batch, stop - start, -1, 1)
        row = torch.nn.functional.pad(bias.permute(0, 2, 3, 1), (start, length - stop)).to(query.dtype)
    if mask is None:
        return row
    if mask.ndim == 2 and mask.shape == (batch, length):
        mask = mask[:, None, None, :]
    return row.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else row + mask


def _mask_rows(mask: Tensor | None, query: Tensor, segments: list[Segment]) -> Tensor | None:
    """Return the part of a mask for some query rows; a mask over keys alone holds for every row."""
    batch, length = query.shape[:2]
    if mask is None or mask.ndim < 2 or (mask.ndim == 2 and mask.shape[0] == batch) or mask.shape[-2] != length:
        return mask
    selected = _taken(mask, segments, dim=-2)
    # A 2-d block with as many rows as the batch has samples would be read as a (B, S) key mask.
    return selected[None, None] if selected.ndim == 2 else selected
