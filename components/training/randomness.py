"""Named, seeded random streams.

Every random choice comes from a generator named after what it decides: `generator(seed, "noise", step)`. A stream depends on its
name alone, so there is no generator state to checkpoint, and a new draw changes no other.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from components.errors import ParameterError


def stream_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream `names` under `seed`; independent streams for different names (SHA-256)."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a `torch.Generator` for the stream `names`, on the CPU so that every device gets the same numbers."""
    return torch.Generator().manual_seed(stream_seed(seed, *names))


def part_size(batch: int, world_size: int) -> int:
    """Return how many rows of a global batch each rank computes.

    Raises ParameterError where they do not divide: a rank with fewer rows would count them for more in the mean of the gradients.
    """
    if batch % world_size:
        raise ParameterError(f"batch = {batch}: must be a multiple of the {world_size} workers")
    return batch // world_size


def rank_part(values: Tensor, rank: int, world_size: int) -> Tensor:
    """Return one rank's rows of `values`, which every rank draws in full for the global batch (total, ...); see `part_size`."""
    part = part_size(len(values), world_size)
    return values[rank * part : (rank + 1) * part]


def sampled_rows(count: int, batch_size: int, source: torch.Generator, rank: int = 0, world_size: int = 1) -> Tensor:
    """Draw a global batch of `batch_size` row numbers below `count` with replacement; return one rank's part, int64."""
    return rank_part(torch.randint(count, (batch_size,), generator=source), rank, world_size)


class ShuffledEpochs:
    """An endless stream of row numbers below `count`: each epoch is a permutation named by (seed, name, epoch)."""

    def __init__(self, count: int, seed: int, name: str) -> None:
        self.count, self.seed, self.name = count, seed, name
        self._orders: dict[int, Tensor] = {}

    def rows(self, positions: Tensor) -> Tensor:
        """Return the row numbers at rising positions of the stream, int64 (N,)."""
        epochs = positions // self.count
        return torch.cat([self._order(int(e))[positions[epochs == e] % self.count] for e in epochs.unique()])

    def _order(self, epoch: int) -> Tensor:
        order = self._orders.get(epoch)
        if order is None:
            order = torch.randperm(self.count, generator=generator(self.seed, self.name, epoch))
            latest = list(self._orders.items())[-1:]  # the two latest are kept; replaced whole, as threads read it
            self._orders = dict([*latest, (epoch, order)])
        return order


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator for the stream `names`."""
    return np.random.default_rng(stream_seed(seed, *names))
