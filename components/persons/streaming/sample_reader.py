"""Batches of a streamed corpus as arrays: samples are chosen (`sample_order`), read (`corpus`), decoded and tokenised."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from components.errors import DataError
from components.persons.pixels import decode_rgb, resized
from components.persons.streaming.corpus import Block, Corpus
from components.persons.streaming.sample_order import SampleOrder
from components.training.randomness import part_size

Arrays = dict[str, NDArray[Any]]
WINDOW_BLOCKS = 64
"""16 384 pictures in blocks of 256: 90 MB of WebPerson, at 5.4 kB per picture."""


class SampleReader:
    """Reads one rank's rows of the global batch of a step. Steps may come in any order; consecutive ones are cheapest.

    Holds the encoded pictures of at most two windows. Can be pickled; the copy reads again. `tokenizer` maps captions to int64
    (N, T); `batch_size` is global.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Callable[[Sequence[str]], torch.Tensor],
        *,
        size: tuple[int, int],
        batch_size: int,
        seed: int,
        window: int = WINDOW_BLOCKS,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.corpus, self.tokenizer, self.size = corpus, tokenizer, size
        self.order = SampleOrder(corpus.sizes, seed=seed, window=window)
        self.batch_size, self.rows, self.rank = batch_size, part_size(batch_size, world_size), rank
        self._numbers = np.cumsum(corpus.sizes) - corpus.sizes  # number of each block's first caption
        self._blocks: OrderedDict[int, Block] = OrderedDict()

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.order)

    def read(self, step: int) -> Arrays:
        """pixels uint8 (b, 3, H, W), ids int64 (b, T), identities and caption_index int64 (b,); b rows.

        Raises DataError for a picture that cannot be decoded.
        """
        first = step * self.batch_size + self.rank * self.rows
        blocks, places = self.order.at(first, first + self.rows)
        height, width = self.size
        pixels = np.empty((self.rows, height, width, 3), dtype=np.uint8)
        identities = np.empty(self.rows, dtype=np.int64)
        captions: list[str] = [""] * self.rows
        for number in np.unique(blocks).tolist():
            block = self._block(number)
            for slot in np.flatnonzero(blocks == number).tolist():
                place = int(places[slot])
                pixels[slot] = self._decode(block, place, number)
                identities[slot] = block.identities[place]
                captions[slot] = block.captions[place]
        return {
            "pixels": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)),
            "ids": self.tokenizer(captions).numpy(),
            "identities": identities,
            "caption_index": self._numbers[blocks] + places,
        }

    def _decode(self, block: Block, place: int, number: int) -> NDArray[np.uint8]:
        """Pixels (H, W, 3), the same as `PersonDataset.pixels`."""
        try:
            return resized(decode_rgb(block.pictures[int(block.picture_of[place])]), *self.size)
        except DataError as error:
            caption = int(self._numbers[number]) + place
            raise DataError(
                f"the picture of caption {caption} ({block.captions[place][:60]!r}) {error}; run prepare, which drops such records"
            ) from error

    def _block(self, number: int) -> Block:
        if number not in self._blocks:
            self._blocks[number] = self.corpus.read(number)
            while len(self._blocks) > 2 * self.order.window:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_blocks": OrderedDict()}
