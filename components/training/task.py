"""Base classes of what the training loop trains."""

from typing import Any

from torch import nn


class TrainingTask(nn.Module):
    """A model with its loss and the form of its batches: `forward(batch, step)` returns scalars, with "loss" among them."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]] | None:
        """Return the optimizer's parameter groups, or None for the loop's own: weight decay on matrices only."""
        return None


class PerSampleTask(TrainingTask):
    """A task whose loss is a mean over independent samples, so that a batch may be computed in parts.

    `rank` and `world_size` say which part of the global batch it draws random numbers for.
    """

    rank: int = 0
    world_size: int = 1
