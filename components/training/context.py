"""The interface between the training loop and whatever runs it, and an implementation for a single process.

The same loop runs in a test or notebook (`LocalContext`), in a Ray Train worker, or in a Tune trial; each has its own `Context`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from components.training.checkpoint import CheckpointStore
from components.training.randomness import generator

State = dict[str, Any]
Strategy = Literal["ddp", "fsdp"]


class Context(ABC):
    """The interface that one process of a training run has to checkpoints, metrics and its process group.

    `rank` and `world_size` describe the process group (0 and 1 without one); `device` is where tensors belong; `strategy` is how
    the processes divide a model (distribution.py).
    """

    seed: int
    device: torch.device
    rank: int = 0
    world_size: int = 1
    strategy: Strategy = "ddp"

    @abstractmethod
    def load(self) -> tuple[int, State] | None:
        """Return the newest complete checkpoint as (step, state), or None for a fresh start."""

    @abstractmethod
    def save(self, state: Mapping[str, Any], step: int) -> None:
        """Keep `state` as the checkpoint after `step` steps. Only rank 0 writes."""

    @abstractmethod
    def report(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics after `step` steps. Only those of rank 0 are kept."""

    def stop_requested(self) -> bool:
        """Return whether training should save a checkpoint after this step and stop."""
        return False

    def generator(self, name: str) -> torch.Generator:
        """Return a fresh CPU generator for the stream `name` under this run's seed."""
        return generator(self.seed, name)


class LocalContext(Context):
    """A single process without orchestration.

    Checkpoints go to `folder`; without one, `load` finds nothing and `save` keeps nothing. `history` holds what was reported.
    """

    def __init__(self, seed: int = 0, folder: Path | None = None, device: str = "cpu") -> None:
        self.seed = seed
        self.device = torch.device(device)
        self.history: list[tuple[int, dict[str, float]]] = []
        self._store = CheckpointStore(folder) if folder is not None else None

    def load(self) -> tuple[int, State] | None:
        return self._store.load() if self._store else None

    def save(self, state: Mapping[str, Any], step: int) -> None:
        if self._store:
            self._store.save(state, step)

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        self.history.append((step, dict(metrics)))
