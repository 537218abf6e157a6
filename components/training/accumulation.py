"""Gradient accumulation: a global batch computed in parts, in parallel by several workers and in sequence by each.

Worker r of w that accumulates k micro-batches computes parts r k to r k + k - 1 of w k. Tasks and batches handle a micro-batch as
they handle a worker: a virtual rank among w k. Rows and random numbers are drawn for the global batch and sliced by that rank, so
the step is the same, to rounding, for every w and k. (Draws from the global generator, as for dropout, have a stream per virtual
rank.)
"""

from collections.abc import Iterator
from contextlib import contextmanager

from components.errors import ParameterError
from components.training.context import Context
from components.training.task import PerSampleTask, TrainingTask


def virtual_ranks(context: Context, accumulate: int) -> list[dict[str, int]]:
    """Return the parts of the global batch that this worker computes in a step, in order, as `{"rank": ..., "world_size": ...}`."""
    parts = context.world_size * accumulate
    return [{"rank": context.rank * accumulate + part, "world_size": parts} for part in range(accumulate)]


def require_even(batch: int, context: Context, accumulate: int) -> None:
    """Raise ParameterError unless a global batch of `batch` samples divides into all parts."""
    if batch % (context.world_size * accumulate):
        raise ParameterError(
            f"batch = {batch}: must be a multiple of {context.world_size} workers x accumulate {accumulate}"
        )


def require_splittable(task: TrainingTask, parts: int, accumulate: int) -> None:
    """Raise ParameterError for a task or batches that cannot be computed in `accumulate` parts.

    A loss that compares the samples of a batch with each other is a different loss on a part of it: only a `PerSampleTask` can be
    split.
    """
    if accumulate == 1 and parts == 1:
        return
    name = type(task).__name__
    if not isinstance(task, PerSampleTask):
        raise ParameterError(f"accumulate = {accumulate}: {name} needs its whole batch at once; set accumulate to 1")
    if parts != accumulate:
        raise ParameterError(
            f"accumulate = {accumulate}: {name} gets batches in {parts} part(s) per step; set accumulate to {parts}"
        )


@contextmanager
def as_part(task: TrainingTask, part: dict[str, int], accumulate: int) -> Iterator[None]:
    """Make `task` draw for one part of the global batch inside the block. Does nothing where the worker has only one part."""
    if accumulate == 1 or not isinstance(task, PerSampleTask):
        yield
        return
    before = task.rank, task.world_size
    task.rank, task.world_size = part["rank"], part["world_size"]
    try:
        yield
    finally:
        task.rank, task.world_size = before
