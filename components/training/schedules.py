"""The learning rate and weight decay of each step."""

import math
from collections.abc import Sequence
from typing import Literal

from components.training.config import RateChange

Decay = Literal["cosine", "constant"]


def rates_at(
    step: int, learning_rate: float, weight_decay: float, changes: Sequence[RateChange]
) -> tuple[float, float]:
    """Return (learning rate, weight decay) at a 0-based step of a training that begins with the given ones.

    They depend on the changes up to that step alone, so a checkpoint can be resumed with a different tail of changes: a
    population's member (Jaderberg et al. 2017) is then a training with a schedule, which can be repeated from its start.
    """
    for change in changes:
        if change.step <= step:
            learning_rate = learning_rate if change.learning_rate is None else change.learning_rate
            weight_decay = weight_decay if change.weight_decay is None else change.weight_decay
    return learning_rate, weight_decay


def learning_rate_factor(
    step: int, steps: int, warmup_steps: int, decay: Decay, warmup_start: float | None = None
) -> float:
    """Return the factor on the learning rate at 0-based `step` of `steps`: linear warm-up, then `constant` or `cosine` to zero.

    Warm-up ends at 1 at `warmup_steps`. It begins at `warmup_start` (IRRA: 0.1), or, for None, one step above 0. IRRA
    changes the rate once per epoch; here it moves with every step and has IRRA's value at the beginning of each epoch.
    """
    if step < warmup_steps and warmup_start is not None:
        return warmup_start + (1 - warmup_start) * step / warmup_steps
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if decay == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
