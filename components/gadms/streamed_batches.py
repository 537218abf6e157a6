"""Batches for `RetrievalTask` out of a streamed corpus: what `CaptionBatches` gives, without a list of the captions in memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from components.errors import ParameterError
from components.gadms.model import DualEncoder
from components.gadms.tasks import RetrievalBatch
from components.persons.augmentation import AugmentationConfig
from components.persons.transforms import augment
from components.training.randomness import generator


class StreamedBatches:
    """`batches(step)`: this rank's rows of the global batch of a step.

    `read(step)` gives them as arrays (`components.persons.streaming.sample_reader`), read here or ahead of time by others.
    `batch_size` is global; `augmentation` as for `CaptionBatches`. Which words of a caption are wrong is not told: so large a
    corpus knows none.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        read: Callable[[int], Mapping[str, Any]],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        if batch_size % world_size:
            raise ParameterError(f"batch_size {batch_size}: must be a multiple of the {world_size} workers")
        self.encoder, self.read, self.augmentation, self.seed = encoder, read, augmentation, seed
        self.rank, self.world_size = rank, world_size

    def __call__(self, step: int) -> RetrievalBatch:
        rows = self.read(step)
        device = self.encoder.device
        return RetrievalBatch(
            pixels=self._augmented(torch.tensor(rows["pixels"]), step),
            ids=torch.tensor(rows["ids"], device=device),
            identities=torch.tensor(rows["identities"], device=device),
            caption_index=torch.tensor(rows["caption_index"], device=device),
        )

    def _augmented(self, pixels: Tensor, step: int) -> Tensor:
        """uint8 (b, 3, H, W) of this rank's rows -> normalised, on the encoder's device."""
        if self.augmentation is None:
            return self.encoder.normalize_pixels(pixels)
        stream, pixels = generator(self.seed, "augment", step), pixels.to(self.encoder.device)
        return augment(pixels, self.augmentation, stream, rank=self.rank, world_size=self.world_size)
