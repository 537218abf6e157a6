"""Batches of caption and picture pairs for `RetrievalTask`, the same for any number of workers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from components.errors import DataError, ParameterError
from components.gadms.model import DualEncoder
from components.gadms.tasks import RetrievalBatch
from components.gadms.tokenizer import wrong_token_mask
from components.persons.augmentation import AugmentationConfig
from components.persons.transforms import augment
from components.training.randomness import generator, rank_part


class CaptionBatches:
    """`batches(step)`: this rank's rows of the global batch of a step.

    One sample is one caption with its picture. Every epoch is a fresh permutation named by (seed, epoch); the stream
    of samples is cut into global batches without regard to epoch ends, so nothing is dropped. `batch_size` is global.

    captions, image_ids, identities: one entry per caption. `pixels(image_ids)` gives uint8 (n, 3, H, W).
    `wrong_words`: per caption the positions of hallucinated words, if known (diagnostics). `augmentation`: what is done to
    pictures, by numbers drawn for the global batch of the step; None only normalises them.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        captions: Sequence[str],
        image_ids: Sequence[int],
        identities: Sequence[int],
        pixels: Callable[[Sequence[int]], Tensor],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        augmentation: AugmentationConfig | None = None,
        wrong_words: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if not captions:
            raise DataError("retrieval training: no captions in the training split")
        if batch_size % world_size:
            raise ParameterError(f"batch_size {batch_size}: must be a multiple of the {world_size} workers")
        self.encoder, self.pixels, self.augmentation = encoder, pixels, augmentation
        self.ids = encoder.tokenizer(captions)
        self.image_ids = list(image_ids)
        self.identities = torch.tensor(list(identities), dtype=torch.long)
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.wrong = None
        if wrong_words is not None:
            pairs = zip(captions, wrong_words, strict=True)
            self.wrong = torch.stack([wrong_token_mask(text, words, encoder.tokenizer) for text, words in pairs])
        self._permutations: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __call__(self, step: int) -> RetrievalBatch:
        index = rank_part(self._rows(step), self.rank, self.world_size)
        pixels = self._augmented(self.pixels([self.image_ids[row] for row in index.tolist()]), step)
        device = self.encoder.device
        batch = RetrievalBatch(
            pixels=pixels,
            ids=self.ids[index].to(device),
            identities=self.identities[index].to(device),
            caption_index=index.to(device),
        )
        if self.wrong is not None:
            batch["wrong"] = self.wrong[index].to(device)
        return batch

    def _augmented(self, pixels: Tensor, step: int) -> Tensor:
        """uint8 (b, 3, H, W) of this rank's rows -> normalised, on the encoder's device."""
        if self.augmentation is None:
            return self.encoder.normalize_pixels(pixels)
        stream = generator(self.seed, "augment", step)
        pixels = pixels.to(self.encoder.device)
        return augment(pixels, self.augmentation, stream, rank=self.rank, world_size=self.world_size)

    def _rows(self, step: int) -> Tensor:
        """Caption rows of the global batch, int64 (batch_size,)."""
        places = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = places // len(self)
        return torch.cat(
            [self._permutation(int(epoch))[places[epochs == epoch] % len(self)] for epoch in epochs.unique()]
        )

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            if len(self._permutations) > 1:
                self._permutations.clear()
            self._permutations[epoch] = torch.randperm(len(self), generator=generator(self.seed, "epoch", epoch))
        return self._permutations[epoch]
