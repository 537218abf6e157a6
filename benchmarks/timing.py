"""Timing for the benchmarks: compared methods run in one process, in turns, so that the state of the machine affects all alike.

On a CPU, the time is the processor time of this process on one thread, which other programs affect little. On a GPU, it is wall
time between two synchronisations. Ratios are of minima, the least disturbed runs; medians are reported beside them.
"""

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """The seconds of each repetition, or the error that prevented them."""

    seconds: tuple[float, ...] = ()
    failure: str | None = None

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def take_turns(
    methods: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int, budget: float
) -> dict[str, Timing]:
    """Time each method once per round, in a rotating order, after one untimed call of each.

    A method that has used up `budget` seconds sits out after its second repetition. One that raises is kept with its error.
    """
    failures = {name: error for name, method in methods.items() if (error := _failure(method, device))}
    seconds: dict[str, list[float]] = {name: [] for name in methods if name not in failures}
    names = list(seconds)
    for turn in range(rounds):
        for name in names[turn % max(1, len(names)) :] + names[: turn % max(1, len(names))]:
            if len(seconds[name]) < 2 or sum(seconds[name]) < budget:
                seconds[name].append(_time(methods[name], device))
    return {
        name: Timing(failure=failures[name]) if name in failures else Timing(tuple(seconds[name])) for name in methods
    }


def describe(device: torch.device) -> dict[str, str]:
    """The software and the device that the numbers were measured with."""
    import diffusers

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": gpu or f"CPU ({platform.machine()}), {torch.get_num_threads()} thread",
        "clock": "wall time" if gpu else "processor time of the process",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }


def save(path: Path, device: torch.device, rows: list[dict[str, Any]]) -> None:
    """Write the rows as JSON."""
    path.write_text(json.dumps({"environment": describe(device), "rows": rows}, indent=1) + "\n")


def _failure(method: Callable[[], object], device: torch.device) -> str | None:
    """Make the untimed call, which selects kernels and allocates memory. Returns its error, if any."""
    try:
        _time(method, device)
    except (RuntimeError, NotImplementedError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def _time(method: Callable[[], object], device: torch.device) -> float:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        method()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    method()
    return time.process_time() - start
