"""The area under the ROC curve: how often a value of one class is above a value of another, ties counting one half."""

import torch
from torch import Tensor


def area_under_curve(high: Tensor, low: Tensor) -> Tensor:
    """P(high > low) + P(high = low) / 2 over all pairs of two vectors, float64 scalar; 0.5 where one is empty."""
    if not len(high) or not len(low):
        return torch.full((), 0.5, device=high.device, dtype=torch.float64)
    return twice_below(high, low).double().mean() / (2 * len(low))


def twice_below(values: Tensor, pool: Tensor) -> Tensor:
    """Twice the number of `pool` (N,) below each value, ties counting one half: int64 like `values`. One sort of the pool."""
    ordered = pool.sort().values
    values = values.contiguous()
    return torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, side="right")
