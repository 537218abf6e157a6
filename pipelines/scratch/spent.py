"""What a stage has cost over all attempts, and the workers that compute it: two files beside its checkpoints.

cost.json    the cost of all attempts; the present one notes its own again and again, so that a killed attempt counts too
group.json   the workers of the present attempt, written by rank 0
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipelines.scratch.manifest import Document

COST_FILE, GROUP_FILE = "cost.json", "group.json"
PEAK = "cost/peak_memory_mb"


class WorkerGroup(Document):
    """The workers that compute a stage: how many processes, and the type of their device ("cuda", "cpu").

    `hardware` is that of the machine of rank 0; empty where Ray started no workers, so that it is the machine of the runner or job.
    """

    workers: int
    device: str
    hardware: dict[str, Any]


def add_costs(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sums of `costs` by name (seconds of each kind), and the largest peak memory."""
    total: dict[str, float] = {}
    for cost in costs:
        for name, value in cost.items():
            known = total.get(name, 0.0)
            total[name] = max(known, value) if name == PEAK else known + value
    return total


class Spent:
    """The cost of the attempts before this one, and where to note the cost with this one."""

    def __init__(self, noted: str | None, write: Callable[[str], None]) -> None:
        self._before = _costs(noted)
        self._write = write

    def total(self, cost: Mapping[str, float]) -> dict[str, float]:
        """Return the cost of all attempts, of which the present one has cost `cost`."""
        return add_costs((self._before, cost))

    def note(self, cost: Mapping[str, float]) -> None:
        """Write the cost of all attempts, in place of what this attempt has noted before."""
        self._write(json.dumps(self.total(cost), sort_keys=True) + "\n")


def _costs(text: str | None) -> dict[str, float]:
    """Return the costs in `text`; {} without one, or for what is not a file of costs."""
    try:
        found = json.loads(text or "{}")
        return {str(name): float(value) for name, value in found.items()}
    except (ValueError, TypeError, AttributeError):
        return {}
