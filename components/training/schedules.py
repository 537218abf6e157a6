"""Learning-rate factors over steps."""

import math


def learning_rate_factor(step: int, steps: int, warmup_steps: int, decay: str) -> float:
    """The factor on the learning rate at 0-based `step` of `steps`: linear warm-up, then `constant` or `cosine` to zero."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if decay == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
