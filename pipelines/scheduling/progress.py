"""How far a running stage is: its steps, as its scratch folder tells."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.graph import StageRun
from pipelines.locks.lease import read_lease
from pipelines.params import ParameterFile
from pipelines.scratch.folder import LEASE_FILE, Scratch, folder_stem
from pipelines.scratch.metric_log import MetricFollower

RATE_REPORTS = 10
"""Reports over which the rate is measured."""


@dataclass(frozen=True)
class Steps:
    """A step of `total` in the present phase (None where that is not known), and steps per second."""

    phase: str
    step: int
    total: int | None
    rate: float | None

    @property
    def left(self) -> float | None:
        """Seconds until the last step, None where they cannot be told."""
        return (self.total - self.step) / self.rate if self.total and self.rate else None


class StageProgress:
    """Follows the metrics of a stage run, whose runner is the process `pid` of this machine."""

    def __init__(self, run: StageRun, pid: int, home: Path, params: ParameterFile) -> None:
        self.run, self.pid, self.home = run, pid, home
        self._began = time.time()
        self._totals = step_totals(params.only([run.stage.name]).get(run.stage.name, {})) if run.stage.curves else []
        self._follower: MetricFollower | None = None
        self._phases: dict[str, list[tuple[int, float]]] = {}
        """By phase, in order: step and time of its last reports."""

    def read(self) -> Steps | None:
        """Return how far the stage is, None before it has reported a step."""
        if not self.run.stage.curves:
            return None
        if self._follower is None:
            folder = self._folder()
            if folder is None:
                return None
            self._follower = MetricFollower(Scratch(folder).metrics_file)
        for line in self._follower.read():
            reports = self._phases.setdefault(line["phase"], [])
            if reports and line["step"] <= reports[-1][0]:  # of an earlier attempt, taken back
                reports.clear()
            reports.append((line["step"], line["time"]))
            del reports[:-RATE_REPORTS]
        return self._steps()

    def _steps(self) -> Steps | None:
        if not self._phases:
            return None
        number = len(self._phases) - 1
        phase, reports = list(self._phases.items())[number]
        last, now = reports[-1]
        # A log that goes on from an earlier attempt has the pause between the two in its times.
        first, began = next((report for report in reports if report[1] >= self._began), reports[-1])
        total = self._totals[min(number, len(self._totals) - 1)] if self._totals else None
        return Steps(phase, last, total, (last - first) / (now - began) if now > began else None)

    def _folder(self) -> Path | None:
        """Return the scratch folder that the runner works in."""
        for lease in self.home.glob(f"{folder_stem(self.run.address)}-*/{LEASE_FILE}"):
            holder = read_lease(lease)
            if holder and holder.pid == self.pid:
                return lease.parent
        return None


def step_totals(section: Mapping[str, Any]) -> list[int]:
    """Return the steps of each training in a stage's section of params.yaml, in its order, which is that of the phases."""
    found = [
        part["steps"] for part in section.values() if isinstance(part, Mapping) and {"steps", "batch"} <= set(part)
    ]
    return found or ([section["steps"]] if "steps" in section else [])
