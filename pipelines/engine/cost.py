"""The cost of a stage (seconds, processor time, memory, workers) over all attempts, and its training throughput."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pipelines.engine.forked import Usage
from pipelines.errors import InfrastructureError
from pipelines.scratch.metric_log import MetricLog
from pipelines.scratch.spent import PEAK, Spent, WorkerGroup
from pipelines.threads.repeating import repeated

NOTE_SECONDS = 5.0
"""Between two notes of the cost: as much of it is lost when this process is killed."""
OF_ANY_WORKER = ("cost/seconds", "cost/worker_seconds", "cost/gpu_seconds")
"""What is known of workers on other machines, of whose processes the system tells nothing here."""


class Meter:
    """Measures one attempt at a stage from now on, and adds it to the attempts before.

    group: returns the workers that compute at the moment, None before they have begun. `only` restricts the cost to these names.
    Counts what children of this process use; with `here`, this process too.
    """

    def __init__(
        self,
        spent: Spent,
        group: Callable[[], WorkerGroup | None],
        *,
        here: bool = False,
        only: Sequence[str] | None = None,
    ) -> None:
        self._spent, self._group, self._only = spent, group, only
        self._whose = (resource.RUSAGE_CHILDREN, *((resource.RUSAGE_SELF,) if here else ()))
        self._started, self._cpu = time.monotonic(), self._cpu_seconds()
        self._read, self._worker_seconds, self._gpu_seconds = self._started, 0.0, 0.0

    def total(self, other: Usage | None = None) -> dict[str, float]:
        """Return the cost of all attempts: wall and processor seconds, the peak memory of one process, worker and GPU seconds.

        `other` is the usage of a worker that the system does not count to the children of this process.
        """
        return self._spent.total(self._attempt(other))

    @contextmanager
    def noted(self, other: Callable[[], Usage | None] = lambda: None) -> Iterator[None]:
        """Note the cost every few seconds, and when the block ends, however it ends."""

        def note() -> None:
            with suppress(OSError, InfrastructureError):  # no reason to end a stage; the next note has it all
                self._spent.note(self._attempt(other()))

        try:
            with repeated(note, NOTE_SECONDS):
                yield
        finally:
            note()

    def _attempt(self, other: Usage | None) -> dict[str, float]:
        """Return the cost of this attempt. The time since the last call is that of the workers that compute now."""
        now, group = time.monotonic(), self._group()
        worker_seconds, gpu_seconds = worker_cost(now - self._read, group)
        self._worker_seconds += worker_seconds
        self._gpu_seconds += gpu_seconds
        self._read = now
        cpu, memory = (other.cpu_seconds, other.peak_memory) if other else (0.0, 0)
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
        peak = max(memory, *(resource.getrusage(who).ru_maxrss for who in self._whose))
        found = {
            "cost/seconds": now - self._started,
            "cost/cpu_seconds": self._cpu_seconds() - self._cpu + cpu,
            PEAK: peak * unit / 2**20,
            "cost/worker_seconds": self._worker_seconds,
            "cost/gpu_seconds": self._gpu_seconds,
        }
        return found if self._only is None else {name: found[name] for name in self._only}

    def _cpu_seconds(self) -> float:
        used = [resource.getrusage(who) for who in self._whose]
        return sum(each.ru_utime + each.ru_stime for each in used)


def worker_cost(seconds: float, group: WorkerGroup | None) -> tuple[float, float]:
    """Return `seconds` times worker processes, and the same for GPUs if each worker has one; without a group, of one process."""
    workers = seconds * (group.workers if group else 1)
    return workers, workers if group and group.device == "cuda" else 0.0


def throughput(log: MetricLog, own: Mapping[str, Any], stage: str) -> dict[str, float]:
    """Return samples and steps per second of a training stage, from the times of its reports; {} for one without steps.

    The median over reports, so that neither a checkpoint nor a pause between a kill and resuming counts as training.
    """
    rates: dict[str, list[float]] = {}
    last: dict[str, Mapping[str, Any]] = {}
    for line in log.read():
        before = last.get(line["phase"])
        if before and line["step"] > before["step"] and line["time"] > before["time"]:
            rate = (line["step"] - before["step"]) / (line["time"] - before["time"])
            rates.setdefault(line["phase"], []).append(rate)
        last[line["phase"]] = line
    if not rates:
        return {}
    # A stage may train two models in turn: the last one counts, and its section has the name of the phase or `training`.
    phase, found = list(rates.items())[-1]
    sections = own.get(stage, {})
    trained = [sections.get(phase), sections.get("training"), *sections.values()]
    batch = next((p["batch"] for p in trained if isinstance(p, Mapping) and {"batch", "steps"} <= set(p)), None)
    steps = statistics.median(found)
    known = {"throughput/steps_per_second": steps}
    return known if batch is None else {**known, "throughput/samples_per_second": steps * batch}
