"""Reads the steps of a streamed corpus ahead of the training that asks for them.

What a step consists of is a function of its number (`components.persons.streaming.sample_order`), so the data set that Ray Data
goes through is the step numbers that are left, and each of its rows is read, decoded and tokenised by whichever reader is free.
Ray Data keeps the order, starts a lost reader's steps again, and stops readers that are too far ahead. Nothing of it is state:
a run that resumes at step n begins a pipeline at n, and meets the batches that it would have met. The processes are Ray Data's own,
on any node; the pools of studies and of generation stay apart, as their tasks are minutes long and report while they run.

Each rank has a pipeline of its own and decodes its own rows only. Every reader reads the encoded pictures of whole windows, of
which a rank's rows are a random part: some 5 MB a step for WebPerson at batch 1024, whatever the number of ranks.
"""

import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from components.errors import DataError
from components.persons.streaming.sample_reader import Arrays, SampleReader
from pipelines.engine.ray_cluster import set_ray_defaults, start_ray
from pipelines.schema.running import Compute

AHEAD = 4
"""Steps that a reader may read ahead; Ray's object store must hold as many per reader."""


class ReadAhead:
    """Reads the steps of `reader` ahead in `readers` Ray processes; with none, in this process when called.

    Steps are cheap in order, up to `steps`; one out of order starts the pipeline anew there. A reader asks Ray for no CPU of its
    own: it is part of its rank's share of the machine, and a rank that waits for a reader that waits for a CPU would wait for ever.
    """

    def __init__(self, reader: SampleReader, *, steps: int, readers: int, compute: Compute) -> None:
        self._reader, self._steps, self._readers, self._compute = reader, steps, readers, compute
        self._next: int | None = None
        self._batches: Iterator[Any] | None = None
        self._started = False

    def read(self, step: int) -> Arrays:
        """Return the read-only arrays of `step`. Raises DataError as `reader` does, and IndexError from `steps` on."""
        if not 0 <= step < self._steps:
            raise IndexError(f"step {step} of {self._steps}")
        if self._readers == 0:
            return self._reader.read(step)
        if self._batches is None or step != self._next:
            self._begin(step)
        assert self._batches is not None
        try:
            batch = next(self._batches)
        except Exception as error:  # whatever it is: the pipeline is of no use after it
            self.close()
            raise _cause(error) from error
        self._next = step + 1
        if int(batch.pop("step")[0]) != step:
            raise AssertionError(f"Ray Data gave another step than {step}: the order was not kept")
        return {name: rows[0] for name, rows in batch.items()}

    def close(self) -> None:
        """Stop the readers, and Ray if it was started here."""
        self._batches = None  # the generator's end stops the pipeline
        if self._started:
            import ray

            ray.shutdown()
            self._started = False

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *of_error: object) -> None:
        self.close()

    def _begin(self, step: int) -> None:
        set_ray_defaults()
        import ray
        import ray.data
        from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

        if not ray.is_initialized():
            start_ray(self._compute)
            self._started = True
        self._batches = None
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        context = DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        room = self._readers * AHEAD * self._bytes_of_a_step()
        context.execution_options.resource_limits = ExecutionResources(object_store_memory=max(room, 64 << 20))
        context.enable_progress_bars = False
        with DataContext.current(context):
            left = self._steps - step
            # Not ray.data.range, whose tasks want a CPU each: ranks may hold them all.
            numbers = ray.data.from_items([{"id": i} for i in range(left)], override_num_blocks=min(left, 20_000))
            rows = numbers.map_batches(
                _Reading,
                fn_constructor_args=(self._reader, step),
                batch_size=1,
                compute=ActorPoolStrategy(size=self._readers),
                num_cpus=0,
            )
            self._batches = iter(rows.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=1))

    def _bytes_of_a_step(self) -> int:
        height, width = self._reader.size
        return self._reader.rows * (3 * height * width + 1024)


class _Reading:
    """Maps a step number to the arrays of the step, as one row, in a reader process."""

    def __init__(self, reader: SampleReader, first: int) -> None:
        self._reader, self._first = reader, first

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        step = self._first + int(batch["id"][0])
        return {"step": np.array([step]), **{name: rows[None] for name, rows in self._reader.read(step).items()}}


def _cause(error: BaseException) -> BaseException:
    """Return the reader's own DataError, whose text Ray wraps in another error; else `error`."""
    found = re.findall(r"components\.errors\.DataError: (.+)", str(error))
    return DataError(found[-1]) if found else error
