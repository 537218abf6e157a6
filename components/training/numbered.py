"""The numbers of the samples of each step, for a training that takes every sample once."""

from dataclasses import KW_ONLY

from components.errors import ParameterError
from components.settings import Positive, settings
from components.training.config import TrainingConfig


@settings
class OncePerSample(TrainingConfig):
    """A training run whose samples are numbered and never come again.

    grow_at: the 0-based step from which on a batch has `grow_by` times as many samples; None never. Late in training a step is
    worth more with less noise in its gradient.
    """

    _: KW_ONLY
    grow_at: Positive | None = None
    grow_by: Positive = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accumulate != 1:
            raise ParameterError(f"accumulate = {self.accumulate}: must be 1 where samples are numbered")
        if self.grow_at is not None and self.grow_at >= self.steps:
            raise ParameterError(f"grow_at = {self.grow_at}: must be below steps = {self.steps}")

    def numbers(self, step: int) -> range:
        """Return the numbers of the samples in the global batch of a 0-based step."""
        small = step if self.grow_at is None else min(step, self.grow_at)
        large = step - small
        first = (small + large * self.grow_by) * self.batch
        grown = self.grow_at is not None and step >= self.grow_at
        return range(first, first + self.batch * (self.grow_by if grown else 1))

    @property
    def samples(self) -> int:
        """The number of samples in all."""
        return self.numbers(self.steps - 1).stop


def part_of(numbers: range, rank: int, world_size: int) -> range:
    """Return one rank's part of the numbers of a step, whose count the ranks divide."""
    part = len(numbers) // world_size
    return numbers[rank * part : (rank + 1) * part]
