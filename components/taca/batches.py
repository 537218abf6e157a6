"""Batches of cached latents for LoRA training, the same for any number of workers."""

from collections.abc import Callable

import torch
from torch import Tensor

from components.taca.cache import LatentCache
from components.training.randomness import generator


def cache_batches(
    cache: LatentCache,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> Callable[[int], dict[str, Tensor]]:
    """`batches(step)`: this rank's part of a global batch of `batch_size` rows, drawn with replacement."""
    share = batch_size // world_size

    def batch(step: int) -> dict[str, Tensor]:
        chosen = torch.randint(len(cache), (batch_size,), generator=generator(seed, "cache rows", step))
        return {key: value.to(device) for key, value in cache.batch(chosen[rank * share : (rank + 1) * share]).items()}

    return batch
