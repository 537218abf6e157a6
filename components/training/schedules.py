"""What the training loop's rates are at each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from components.errors import ParameterError


@dataclass(frozen=True)
class Change:
    """From the 0-based `step` on, these rates (those after warm-up) in place of the ones before; None keeps what there was."""

    step: int
    learning_rate: float | None = None
    weight_decay: float | None = None


def rates_at(step: int, learning_rate: float, weight_decay: float, changes: Sequence[Change]) -> tuple[float, float]:
    """(learning rate, weight decay) at a 0-based step, of a training that begins with the given ones.

    What holds at a step depends on the changes up to it alone, so a checkpoint may be gone on from with other later changes: a
    population's member (Jaderberg et al. 2017) is then a training with a schedule, which anybody can repeat from its start.
    """
    for change in changes:
        if change.step <= step:
            learning_rate = learning_rate if change.learning_rate is None else change.learning_rate
            weight_decay = weight_decay if change.weight_decay is None else change.weight_decay
    return learning_rate, weight_decay


def require_changes(changes: Sequence[Change], steps: int, weight_decay: float) -> None:
    """Raises ParameterError unless the steps rise, lie within the training, and the rates can be changed to."""
    before = 0
    for place, change in enumerate(changes):
        name = f"changes[{place}]"
        if not before < change.step < steps:
            raise ParameterError(f"{name}.step = {change.step}: must be above {before} and below steps = {steps}")
        if change.learning_rate is not None and not change.learning_rate > 0:
            raise ParameterError(f"{name}.learning_rate = {change.learning_rate}: must be above 0")
        if change.weight_decay is not None and not (weight_decay > 0 and change.weight_decay >= 0):
            raise ParameterError(
                f"{name}.weight_decay = {change.weight_decay}: must not be below 0, and changes only what begins above 0"
            )
        before = change.step


def learning_rate_factor(
    step: int, steps: int, warmup_steps: int, decay: str, warmup_start: float | None = None
) -> float:
    """The factor on the learning rate at 0-based `step` of `steps`: linear warm-up, then `constant` or `cosine` to zero.

    Warm-up ends at 1 at `warmup_steps`. It begins at `warmup_start` (IRRA: 0.1), or, for None, one step's share above 0. IRRA
    changes the rate once an epoch; here it moves with every step and has IRRA's value at the beginning of each epoch.
    """
    if step < warmup_steps and warmup_start is not None:
        return warmup_start + (1 - warmup_start) * step / warmup_steps
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if decay == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
