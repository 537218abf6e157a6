"""Gradient-attention similarity scores (GA-DMS section 4.1): how much each caption token serves the match with its picture.

For each of the last n text layers, with q, k, v that layer's projections, o = softmax(q k) v its attention output
before the output projection, and e the end token:

    gradient part   S_g(j) = sum_d  g_d * w(j) * v_d(j),     g = d cos(text, image) / d o(e)
                    w(j)   = Phi(cos(q(e), pooled k(j)))      Phi: min-max over the caption's tokens to [0, 1]
    attention part  S_a(j) = A(e, j) / sum_i A(e, i)          A: attention of the end token
    score           S(j)   = ReLU(mean over layers of S_g(j) S_a(j)) / max_j S(j)

The paper leaves Phi, the range of S and the heads open. Here everything is per caption and over its own tokens
(start, end and padding have score 0), in fp32, so a caption's score does not depend on its batch; the final division
by the caption's maximum puts S in [0, 1], which the masking probabilities need. Heads are the model's own: A is
averaged over them, g and v are concatenated.

Cheap because only the end token needs gradients: attention is causal, so the keys and values of earlier tokens do not
depend on the end token's stream. They come from one forward pass without gradients, and the n layers are repeated for
one token a caption. That is exact: d cos / d o(e) flows through o(e) -> stream of e -> cos alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from components.errors import ParameterError
from components.gadms.config import Heads
from components.gadms.model import DualEncoder


def default_scoring_layers(encoder: DualEncoder) -> int:
    """Return the number of scored layers: two thirds of the text tower, rounded up (8 of 12 in the paper, figure 7)."""
    return math.ceil(len(encoder.clip.transformer.resblocks) * 2 / 3)


@dataclass(frozen=True)
class EndTokenMaps:
    """Gradients, attention and projections of the end token in each of the last n text layers; lists of n tensors, no graph."""

    gradients: list[Tensor]  # (B, W) of the cosine at the attention output
    attentions: list[Tensor]  # (B, L) of the end token, mean over heads; 0 from there on
    queries: list[Tensor]  # (B, L, W)
    keys: list[Tensor]  # (B, L, W)
    values: list[Tensor]  # (B, L, W)
    end: Tensor  # (B,) position of the end token
    valid: Tensor  # bool (B, L), the caption's tokens between start and end


def end_token_maps(
    encoder: DualEncoder,
    ids: Tensor,
    image: Tensor,
    *,
    layers: int | None = None,
    heads: Heads = "model",
    padding: bool = False,
) -> EndTokenMaps:
    """Run one pass without gradients over all tokens, then one with gradients over the end tokens alone.

    ids (B, T) raw captions; image (B, D) pooled image features, taken as constants. L is the length of the longest
    caption, or T with `padding` (nothing but the keys and values there differs).
    """
    blocks = encoder.clip.transformer.resblocks
    layers = default_scoring_layers(encoder) if layers is None else layers
    if not 1 <= layers <= len(blocks):
        raise ParameterError(f"scoring layers {layers}: the text tower has {len(blocks)}")
    end = ids.argmax(dim=-1)  # (B,)
    length = ids.shape[1] if padding else int(end.max()) + 1
    with torch.no_grad():
        start, queries, keys, values = project_tokens(encoder, ids[:, :length], end, layers, heads)
    gradients, attentions = end_token_gradients(
        encoder, start, keys, values, end, image.detach().to(start.dtype), heads
    )
    positions = torch.arange(length, device=ids.device)
    valid = (positions > 0) & (positions < end[:, None])
    return EndTokenMaps(list(gradients), attentions, queries, keys, values, end, valid)


@torch.no_grad()
def scores_of(maps: EndTokenMaps, scales: Sequence[int] = (1, 2), use_attention: bool = True) -> Tensor:
    """Compute the mean over layers of S_g S_a before ReLU and division, signed (B, L); 0 outside the caption's tokens."""
    total = torch.zeros_like(maps.attentions[0])
    batch = torch.arange(len(maps.end), device=maps.end.device)
    for gradient, attention, query, key, value in zip(
        maps.gradients, maps.attentions, maps.queries, maps.keys, maps.values, strict=True
    ):
        weight = _key_weight(query[batch, maps.end], key, maps.valid, scales)
        importance = torch.einsum("bd,bld->bl", gradient, value) * weight
        total += importance * attention_fractions(attention, maps.valid) if use_attention else importance
    return (total / len(maps.keys)).masked_fill(~maps.valid, 0)


def attention_fractions(attention: Tensor, valid: Tensor) -> Tensor:
    """S_a: the end token's attention (B, L) as fractions over the caption's tokens."""
    inside = attention.masked_fill(~valid, 0)
    return inside / inside.sum(-1, keepdim=True).clamp_min(torch.finfo(inside.dtype).tiny)


def project_tokens(
    encoder: DualEncoder, ids: Tensor, end: Tensor, layers: int, heads: Heads
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """The end token's stream (B, W) before the scored layers, and their queries, keys and values, each (B, L, W)."""
    mask = encoder.clip.attn_mask[: ids.shape[1], : ids.shape[1]].to(encoder.clip.positional_embedding.dtype)
    hidden = encoder.embed_tokens(ids)
    blocks = encoder.clip.transformer.resblocks
    for block in blocks[:-layers]:
        hidden = block(hidden, attn_mask=mask)
    start = hidden[torch.arange(len(ids), device=ids.device), end]
    queries, keys, values = [], [], []
    for block in blocks[-layers:]:
        query, key, value = _project(block, hidden)
        queries.append(query)
        keys.append(key)
        values.append(value)
        if len(keys) == layers:
            break  # the output of the last layer matters for the end token alone, which is computed with gradients
        count = _heads(block, heads)
        query, key, value = (part.unflatten(-1, (count, -1)).transpose(1, 2) for part in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = _after_attention(block, hidden, attended.transpose(1, 2).flatten(2))
    return start, queries, keys, values


@torch.enable_grad()
def end_token_gradients(
    encoder: DualEncoder,
    start: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    end: Tensor,
    image: Tensor,
    heads: Heads,
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Per scored layer: gradient at the end token's attention output (B, W), and its attention (B, L), its own excepted."""
    stream = start
    outputs: list[Tensor] = []
    attentions = []
    places = torch.arange(keys[0].shape[1], device=end.device)
    for block, key, value in zip(encoder.clip.transformer.resblocks[-len(keys) :], keys, values, strict=True):
        count = _heads(block, heads)
        projected = (part.unflatten(-1, (count, 1, -1)) for part in _project(block, stream))  # (B, H, 1, d)
        query, own_key, own_value = projected
        past = [part.unflatten(-1, (count, -1)).transpose(1, 2) for part in (key, value)]  # (B, H, L, d)
        scale = query.shape[-1] ** -0.5
        # The end token's own key and value carry the gradient of its stream; those of earlier tokens are constants.
        logits = (query @ past[0].mT * scale).masked_fill(places >= end[:, None, None, None], -torch.inf)
        own = (query * own_key).sum(-1, keepdim=True) * scale  # (B, H, 1, 1)
        attention = torch.cat([logits, own], dim=-1).softmax(dim=-1)
        output = attention[..., :-1] @ past[1] + attention[..., -1:] * own_value
        output = output.flatten(1)
        # The graph starts at the first output: no gradient before it is needed.
        output = output if outputs else output.detach().requires_grad_()
        outputs.append(output)
        attentions.append(attention.detach()[:, :, 0, :-1].mean(dim=1))
        stream = _after_attention(block, stream, output)
    similarity = F.cosine_similarity(encoder.project_text(stream), image, dim=-1)
    # Captions do not see each other, so the gradient of the sum is each caption's own gradient.
    return torch.autograd.grad(similarity.sum(), outputs), attentions


def _project(block: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    attention = block.attn
    query, key, value = F.linear(block.ln_1(hidden), attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    return query, key, value


def _after_attention(block: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    hidden = hidden + block.ls_1(block.attn.out_proj(attended))
    return hidden + block.ls_2(block.mlp(block.ln_2(hidden)))


def _heads(block: Any, heads: str) -> int:
    return int(block.attn.num_heads) if heads == "model" else 1


def _key_weight(query: Tensor, key: Tensor, valid: Tensor, scales: Sequence[int]) -> Tensor:
    """w of every token, in [0, 1], (B, L): min-max over the caption of the cosine of the end's query with the pooled keys."""
    count = valid.sum(-1)  # (B,) tokens of each caption; they are positions 1..count
    # The query is one vector; pooling over neighbours leaves it as it is.
    pooled = torch.stack([multi_scale_pool(key[:, 1:], count, scale) for scale in scales]).mean(0)
    cosine = F.cosine_similarity(query[:, None], F.pad(pooled, (0, 0, 1, 0)), dim=-1)
    low = cosine.masked_fill(~valid, torch.inf).amin(-1, keepdim=True)
    high = cosine.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True)
    # A caption of one token, or of equal ones, has weight 1.
    return torch.where(high > low, (cosine - low) / (high - low), 1.0).masked_fill(~valid, 0)


def multi_scale_pool(tokens: Tensor, count: Tensor, scale: int) -> Tensor:
    """Average groups of `scale` neighbours among the first `count` tokens and interpolate back: (B, L, D) -> (B, L, D).

    The last group may be smaller. Interpolation is `F.interpolate(mode="linear", align_corners=False)` per caption; 0 after
    `count`.
    """
    if scale == 1:
        return tokens
    batch, length, width = tokens.shape
    positions = torch.arange(length, device=tokens.device)
    inside = positions < count[:, None]  # (B, L)
    room = -length % scale
    sums = F.pad(tokens * inside[..., None], (0, 0, 0, room)).unflatten(1, (-1, scale)).sum(2)
    sizes = F.pad(inside.to(tokens.dtype), (0, room)).unflatten(1, (-1, scale)).sum(2)
    groups = sums / sizes.clamp_min(1)[..., None]  # (B, G, D)
    used = (count + scale - 1) // scale  # (B,) groups of each caption
    source = (positions + 0.5) * (used.to(tokens.dtype) / count.clamp_min(1))[:, None] - 0.5
    source = source.clamp_min(0)
    left = source.floor().long().clamp_max(groups.shape[1] - 1)
    right = torch.minimum(left + 1, (used[:, None] - 1).clamp_min(0))
    left = torch.minimum(left, right)
    fraction = (source - source.floor())[..., None]

    def take(index: Tensor) -> Tensor:
        return groups.gather(1, index[..., None].expand(batch, length, width))

    return (take(left) * (1 - fraction) + take(right) * fraction) * inside[..., None]
