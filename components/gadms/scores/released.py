"""The score as the released code computes it, deviations from the paper included, for comparison and parity.

Unlike `gradient.py`: one head, sum over layers; keys and the end's query pooled over all positions with start, end and
padding, and min-max over these too; attention divided by the *signed sum of the importances* instead of its own. Then
(normalisation "batch") one min-max over the whole batch, so that a caption's score depends on the rest of the batch and an outlier
moves all others towards 0. In fp32: in the half precision of the released code its guards are zeros.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from components.gadms.scores.gradient import EndTokenMaps, multi_scale_pool

GUARD = 1e-8


@torch.no_grad()
def released_scores(maps: EndTokenMaps, scales: Sequence[int] = (1, 2)) -> Tensor:
    """Compute the score before the min-max over the batch, (B, T), not negative. `maps` of one head, with padding."""
    total = torch.zeros_like(maps.attentions[0])
    batch = torch.arange(len(maps.end), device=maps.end.device)
    everything = torch.full_like(maps.end, maps.valid.shape[1])  # pooled over all positions
    for gradient, attention, query, key, value in zip(
        maps.gradients, maps.attentions, maps.queries, maps.keys, maps.values, strict=True
    ):
        pooled_query, pooled_key = (
            torch.stack([multi_scale_pool(tokens, everything, scale) for scale in scales]).mean(0)
            for tokens in (query, key)
        )
        cosine = F.cosine_similarity(pooled_query[batch, maps.end][:, None], pooled_key, dim=-1)
        low, high = cosine.amin(-1, keepdim=True), cosine.amax(-1, keepdim=True)
        weight = (cosine - low) / (high - low + GUARD)
        raw = weight * torch.einsum("bd,bld->bl", gradient, value)
        total += raw * attention / (raw.sum(-1, keepdim=True) + GUARD)
    return total.relu() * maps.valid
