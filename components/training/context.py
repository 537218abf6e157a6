"""What a training loop needs from its surroundings, and the plainest surroundings there are.

The same loop runs bare in a test or notebook (`LocalContext`), in a Ray Train worker, or in a Tune trial: each brings a `Context`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from components.training.checkpoint import CheckpointStore
from components.training.randomness import generator

State = dict[str, Any]


class Context(Protocol):
    """The surroundings of one process of a training run.

    `rank` and `world_size` describe the process group (0 and 1 without one); `device` is where tensors belong. A context may have
    a `strategy`, "ddp" or "fsdp", which says how the processes divide a model (distribution.py); without one it is ddp. It may have
    `asked_to_leave()`, which says after a step whether training shall save a checkpoint and stop.
    """

    seed: int
    device: torch.device
    rank: int
    world_size: int

    def load(self) -> tuple[int, State] | None:
        """The newest complete checkpoint as (step, state), or None for a fresh start."""

    def save(self, state: Mapping[str, Any], step: int) -> None:
        """Keep `state` as the checkpoint after `step` steps. Only rank 0 writes."""

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics after `step` steps. Only rank 0 counts."""

    def generator(self, name: str) -> torch.Generator:
        """A fresh CPU generator for the stream `name` under this run's seed."""


class LocalContext:
    """One process, no orchestration. Checkpoints go to `folder`; without one, `load` starts afresh and `save` keeps nothing."""

    def __init__(self, seed: int = 0, folder: Path | None = None, device: str = "cpu") -> None:
        self.seed = seed
        self.device = torch.device(device)
        self.rank = 0
        self.world_size = 1
        self.history: list[tuple[int, dict[str, float]]] = []
        self._store = CheckpointStore(folder) if folder is not None else None

    def load(self) -> tuple[int, State] | None:
        return self._store.load() if self._store else None

    def save(self, state: Mapping[str, Any], step: int) -> None:
        if self._store:
            self._store.save(state, step)

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        self.history.append((step, dict(metrics)))

    def generator(self, name: str) -> torch.Generator:
        return generator(self.seed, name)
