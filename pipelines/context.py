"""What a stage function gets from the runner."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from components.training.checkpoint import CheckpointStore
from components.training.randomness import generator
from pipelines.reported import MetricLog
from pipelines.scratch import Scratch


class StageContext:
    """A `components.training.context.Context` whose checkpoints and metrics live in the stage's scratch folder.

    `phase(name)` gives a context with checkpoints and steps of its own, for a stage that trains two things in turn.
    `figures` is a folder for pictures that the tracking server should show.
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
        strategy: str = "ddp",
        on_save: Callable[[Mapping[str, float]], None] = lambda metrics: None,
    ) -> None:
        self.scratch = scratch
        self.seed = seed
        self.arm = arm
        self.device = device
        self.rank = rank
        self.world_size = world_size
        self.strategy = strategy
        self._phase = phase
        self._on_save = on_save
        self._store = CheckpointStore(scratch.checkpoints / phase)
        self._log = MetricLog(scratch.reported)
        self._last: dict[str, float] = {}

    @property
    def figures(self) -> Path:
        return self.scratch.figures

    def phase(self, name: str) -> "StageContext":
        return StageContext(
            self.scratch,
            seed=self.seed,
            arm=self.arm,
            device=self.device,
            rank=self.rank,
            world_size=self.world_size,
            phase=name,
            strategy=self.strategy,
            on_save=self._on_save,
        )

    def load(self) -> tuple[int, dict[str, Any]] | None:
        loaded = self._store.load()
        step = loaded[0] if loaded else 0
        if self.rank == 0:
            self._log.take_back(self._phase, step)
            if loaded:
                print(f"{self._phase}: going on from step {step}", flush=True)
        return loaded

    def save(self, state: Mapping[str, Any], step: int) -> None:
        if self.rank == 0:
            self._store.save(state, step)
        self._on_save(self._last)

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        self._last = dict(metrics)
        if self.rank == 0:
            self._log.append(self._phase, step, metrics)

    def generator(self, name: str) -> torch.Generator:
        return generator(self.seed, name)
