"""The context of a stage: checkpoints, metrics, seed and device for a stage function."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from components.taca.memory_options import Offload
from components.training.checkpoint import CheckpointStore
from components.training.context import Context, Strategy
from pipelines.locks.waiting import retry_while_away, storage_timeout
from pipelines.scratch.folder import Scratch
from pipelines.scratch.metric_log import MetricLog

LOOK_SECONDS = 0.5
"""Between two looks for a stop request: the scratch folder may be on a network."""


class StageContext(Context):
    """A training context whose checkpoints and metrics are in the stage's scratch folder.

    `phase(name)` returns a context with its own checkpoints and steps, for a stage that trains two models in turn or keeps many
    small checkpoints; a `quiet` one prints nothing when it resumes. `figures` is a folder for pictures that MLflow should show.
    `offload` says where weights of a pipeline that draws wait, on a GPU.
    """

    def __init__(
        self,
        scratch: Scratch,
        *,
        seed: int,
        arm: str | None,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        phase: str = "main",
        quiet: bool = False,
        strategy: Strategy = "ddp",
        offload: Offload = "none",
        on_save: Callable[[Mapping[str, float]], None] = lambda metrics: None,
    ) -> None:
        self.scratch = scratch
        self.seed = seed
        self.arm = arm
        self.device = device
        self.rank = rank
        self.world_size = world_size
        self.strategy = strategy
        self.offload = offload
        self._phase = phase
        self._quiet = quiet
        self._on_save = on_save
        self._store = CheckpointStore(scratch.checkpoints / phase)
        self._log = MetricLog(scratch.metrics_file)
        self._last: dict[str, float] = {}
        self._was_there = scratch.folder.is_dir()
        self._looked = 0.0
        self._until = json.loads(scratch.stop_after_file.read_text()) if scratch.stop_after_file.is_file() else None
        self._reached = False

    @property
    def figures(self) -> Path:
        return self.scratch.figures

    def phase(self, name: str, *, quiet: bool = False) -> "StageContext":
        return StageContext(
            self.scratch,
            seed=self.seed,
            arm=self.arm,
            device=self.device,
            rank=self.rank,
            world_size=self.world_size,
            phase=name,
            quiet=quiet,
            strategy=self.strategy,
            offload=self.offload,
            on_save=self._on_save,
        )

    def load(self) -> tuple[int, dict[str, Any]] | None:
        loaded = self._store.load()
        step = loaded[0] if loaded else 0
        workers = loaded[1].pop("workers", self.world_size) if loaded else self.world_size
        if self.rank == 0 and not self._quiet:
            if loaded:
                other = f" with {self.world_size} worker(s) in place of {workers}" if workers != self.world_size else ""
                print(f"{self._phase}: resuming from step {step}{other}", flush=True)
            elif any(line["phase"] == self._phase for line in self._log.read()):
                print(f"{self._phase}: no checkpoint is left to resume from; starting again", flush=True)
        if self.rank == 0:
            self._log.take_back(self._phase, step)
        return loaded

    def save(self, state: Mapping[str, Any], step: int) -> None:
        if self.rank == 0:
            self._when_back(lambda: self._store.save({**state, "workers": self.world_size}, step))
        self._on_save(self._last)

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        self._last = dict(metrics)
        if self._until and self._until["metric"] in metrics and step >= self._until["step"]:
            self._reached = True
        if self.rank == 0:
            self._when_back(lambda: self._log.append(self._phase, step, metrics))

    def stop_requested(self) -> bool:
        """Return whether the runner requested a stop, or the step that `until` names is reached."""
        if self._reached:
            return True
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return False
        self._looked = time.monotonic()
        return self.scratch.stop_file.exists()

    def _when_back(self, write: Callable[[], None]) -> None:
        """Write once the storage is there: else the folder would be made again and hide what is in it.

        Raises InfrastructureError when another process works in the folder: a runner that was suspended does not stop its worker.
        """
        self.scratch.require_holder()
        retry_while_away(write, self._is_away, f"the scratch folder {self.scratch.folder}", timeout=storage_timeout())

    def _is_away(self) -> bool:
        try:
            return self._was_there and not self.scratch.folder.is_dir()
        except OSError:  # a stale handle, say
            return True
