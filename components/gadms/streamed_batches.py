"""Batches for `RetrievalTask` from a streamed corpus: as `CaptionBatches`, without the captions in memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from components.gadms.batches import AugmentedBatches
from components.gadms.model import DualEncoder
from components.gadms.tasks import RetrievalBatch
from components.persons.augmentation import AugmentationConfig


class StreamedBatches(AugmentedBatches):
    """Returns by step this rank's rows of the global batch.

    `read(step)` returns them as arrays (`components.persons.streaming.sample_reader`), read here or ahead of time by others.
    `batch_size` is global. Batches have no `wrong`, as wrong words of so large a corpus are unknown.
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
        super().__init__(encoder, batch_size, seed, rank, world_size, augmentation)
        self.read = read

    def __call__(self, step: int) -> RetrievalBatch:
        rows = self.read(step)
        device = self.encoder.device
        return RetrievalBatch(
            pixels=self.augmented(torch.tensor(rows["pixels"]), step),
            ids=torch.tensor(rows["ids"], device=device),
            identities=torch.tensor(rows["identities"], device=device),
            caption_index=torch.tensor(rows["caption_index"], device=device),
        )
