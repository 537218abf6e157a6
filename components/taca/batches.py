"""Batches of cached latents for LoRA training, the same for any number of workers."""

from collections.abc import Callable

import torch
from torch import Tensor

from components.taca.cache import LatentCache
from components.training.randomness import generator, sampled_rows


def cache_batches(
    cache: LatentCache,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> Callable[[int], dict[str, Tensor]]:
    """Return `batches(step)`: this rank's part of a global batch of `batch_size` rows, drawn with replacement."""

    def batch(step: int) -> dict[str, Tensor]:
        rows = sampled_rows(len(cache), batch_size, generator(seed, "cache rows", step), rank, world_size)
        return {key: value.to(device) for key, value in cache.batch(rows).items()}

    return batch
