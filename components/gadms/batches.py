"""Batches of caption and picture pairs for `RetrievalTask`, the same for any number of workers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from components.errors import DataError
from components.gadms.model import DualEncoder
from components.gadms.tasks import RetrievalBatch
from components.gadms.tokenizer import token_word_alignment, word_token_mask
from components.persons.augmentation import AugmentationConfig
from components.persons.transforms import augment
from components.training.prefetch import Prefetch
from components.training.randomness import ShuffledEpochs, generator, part_size, rank_part


class AugmentedBatches:
    """Base class of retrieval batches: one rank's part, and the augmentation of its pictures.

    `augmentation`: of training pictures, by numbers drawn for the global batch of the step; None only normalises them.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        augmentation: AugmentationConfig | None,
    ) -> None:
        part_size(batch_size, world_size)  # refuses one that does not divide
        self.encoder, self.augmentation = encoder, augmentation
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size

    def augmented(self, pixels: Tensor, step: int) -> Tensor:
        """Augment and normalise this rank's rows, uint8 (b, 3, H, W), on the encoder's device."""
        if self.augmentation is None:
            return self.encoder.normalize_pixels(pixels)
        stream, pixels = generator(self.seed, "augment", step), pixels.to(self.encoder.device)
        return augment(pixels, self.augmentation, stream, rank=self.rank, world_size=self.world_size)


class CaptionBatches(AugmentedBatches):
    """Returns by step this rank's rows of the global batch.

    A sample is one caption with its picture. The stream of shuffled epochs is cut into global batches without regard to epoch ends,
    so nothing is dropped. `batch_size` is global.

    captions, image_ids, identities: one entry per caption. `pixels(image_ids)` returns uint8 (n, 3, H, W). `wrong_words`: per
    caption the positions of hallucinated words, if known (diagnostics), and `fact_words` those of words that state a fact.

    With `readers`, as many threads call `pixels` for the next steps, up to `steps`; the batches are the same. The threads end with
    `close`, or with a `with` block of the batches.
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
        fact_words: Sequence[Sequence[int]] | None = None,
        readers: int = 0,
        steps: int | None = None,
    ) -> None:
        if not captions:
            raise DataError("retrieval training: no captions in the training split")
        super().__init__(encoder, batch_size, seed, rank, world_size, augmentation)
        self.pixels = pixels
        self.ids = encoder.tokenizer(captions)
        self.image_ids = list(image_ids)
        self.identities = torch.tensor(list(identities), dtype=torch.long)
        self.wrong, self.facts = self._token_masks(captions, (wrong_words, fact_words))
        self._epochs = ShuffledEpochs(len(self.ids), seed, "epoch")
        self._ahead = Prefetch(self._read, steps=steps, threads=readers) if readers else None

    def __len__(self) -> int:
        return len(self.ids)

    def __call__(self, step: int) -> RetrievalBatch:
        index, pixels = self._ahead(step) if self._ahead else self._read(step)
        pixels = self.augmented(pixels, step)
        device = self.encoder.device
        batch = RetrievalBatch(
            pixels=pixels,
            ids=self.ids[index].to(device),
            identities=self.identities[index].to(device),
            caption_index=index.to(device),
        )
        if self.wrong is not None:
            batch["wrong"] = self.wrong[index].to(device)
        if self.facts is not None:
            batch["facts"] = self.facts[index].to(device)
        return batch

    def _token_masks(
        self, captions: Sequence[str], choices: Sequence[Sequence[Sequence[int]] | None]
    ) -> list[Tensor | None]:
        """For each choice of words, by their positions in each caption, their tokens, bool (captions, T); None for None."""
        if not any(choices):
            return [None for _ in choices]
        pairs = zip(captions, self.ids, strict=True)
        alignments = [token_word_alignment(caption, self.encoder.tokenizer, ids) for caption, ids in pairs]
        return [
            torch.stack([word_token_mask(owner, words) for owner, words in zip(alignments, chosen, strict=True)])
            if chosen is not None
            else None
            for chosen in choices
        ]

    def close(self) -> None:
        """End the readers."""
        if self._ahead:
            self._ahead.close()

    def __enter__(self) -> "CaptionBatches":
        return self

    def __exit__(self, *of_error: object) -> None:
        self.close()

    def _read(self, step: int) -> tuple[Tensor, Tensor]:
        """This rank's caption rows, int64 (b,), and their pictures, uint8 (b, 3, H, W)."""
        index = rank_part(self._rows(step), self.rank, self.world_size)
        return index, self.pixels([self.image_ids[row] for row in index.tolist()])

    def _rows(self, step: int) -> Tensor:
        """Caption rows of the global batch, int64 (batch_size,)."""
        return self._epochs.rows(torch.arange(step * self.batch_size, (step + 1) * self.batch_size))
