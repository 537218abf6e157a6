"""Learning-rate factors over steps."""

import math


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
