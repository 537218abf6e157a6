"""The options of `sweep`."""

from dataclasses import dataclass
from pathlib import Path

from components.errors import ParameterError


@dataclass(frozen=True)
class SweepOptions:
    """Raises ParameterError for a number below 1."""

    space: str
    samples: int
    seeds: int
    workers: int
    budget_minutes: float | None
    budget_gpu_hours: float | None
    no_scheduler: bool
    warm_start: str | None
    retry_failed: bool
    folder: Path

    def __post_init__(self) -> None:
        for name in ("samples", "seeds", "workers"):
            if getattr(self, name) < 1:
                raise ParameterError(f"--{name} {getattr(self, name)}: must be at least 1")
