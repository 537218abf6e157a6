"""The cost of a stage (seconds, processor time, memory, workers) and its training throughput."""

import resource
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

from pipelines.engine.forked import Usage
from pipelines.graph import StageRun
from pipelines.records.stage_record import hardware
from pipelines.schema.running import Compute
from pipelines.scratch.metric_log import MetricLog


class Meter:
    """Measures what the children of this process use from now on; with `here`, this process too."""

    def __init__(self, *, here: bool = False) -> None:
        self._whose = (resource.RUSAGE_CHILDREN, *((resource.RUSAGE_SELF,) if here else ()))
        self._started, self._cpu = time.monotonic(), self._cpu_seconds()

    def read(self, run: StageRun, compute: Compute, other: Usage | None = None) -> dict[str, float]:
        """Return wall and processor seconds, the peak memory of one process, and worker seconds.

        `other` is the usage of a worker that is not a child of this process.
        """
        cpu, memory = (other.cpu_seconds, other.peak_memory) if other else (0.0, 0)
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
        seconds = time.monotonic() - self._started
        return {
            "cost/seconds": seconds,
            "cost/cpu_seconds": self._cpu_seconds() - self._cpu + cpu,
            "cost/peak_memory_mb": max(memory, *(resource.getrusage(who).ru_maxrss for who in self._whose))
            * unit
            / 2**20,
            **worker_cost(seconds, run, compute),
        }

    def _cpu_seconds(self) -> float:
        used = [resource.getrusage(who) for who in self._whose]
        return sum(each.ru_utime + each.ru_stime for each in used)


def worker_cost(seconds: float, run: StageRun, compute: Compute) -> dict[str, float]:
    """Return seconds times worker processes, and the same for GPUs when each worker has one."""
    worker_seconds = seconds * max(1, compute.workers if run.stage.trains else 0)
    on_gpu = compute.device == "cuda" or (compute.device == "auto" and hardware()["gpu"] != "none")
    return {"cost/worker_seconds": worker_seconds, "cost/gpu_seconds": worker_seconds if on_gpu else 0.0}


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
