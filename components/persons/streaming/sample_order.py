"""The order of samples of a streamed corpus, as a pure function of (seed, position).

An epoch visits the blocks in a random order. `window` consecutive blocks are a window, whose captions are shuffled together. So
every caption comes once per epoch, the shuffle reaches as far as a window, and one window is in memory. There is no state: the
sample at any position of the endless stream of epochs follows from the seed and the position, so a run resumes at any step, and
the order does not depend on the number of workers.

The captions of one picture are in one block, so they meet in a batch with a probability of about batch / window. They are positives
of each other there, as any two captions of an identity.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from components.errors import DataError, ParameterError
from components.training.randomness import numpy_generator

Integers = NDArray[np.int64]


class SampleOrder:
    """Maps positions to (block, place in the block). `sizes`: captions of each block, int64 (blocks,)."""

    def __init__(self, sizes: Integers, *, seed: int, window: int) -> None:
        if window < 1:
            raise ParameterError(f"window = {window}: must be at least 1 block")
        if not len(sizes) or int(sizes.min()) < 1:
            raise DataError("a streamed corpus needs blocks, each with at least one caption")
        self.sizes, self.seed, self.window = sizes, seed, window
        self._total = int(sizes.sum())
        self._make_caches()

    def _make_caches(self) -> None:
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._samples = lru_cache(maxsize=2)(self._draw_window)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("_epoch", "_samples")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._make_caches()

    def __len__(self) -> int:
        """Samples per epoch."""
        return self._total

    def at(self, first: int, stop: int) -> tuple[Integers, Integers]:
        """Return the samples at positions first to stop - 1: their blocks and places in the blocks, each int64 (stop - first,)."""
        blocks, places = [], []
        while first < stop:
            epoch, begin = divmod(first, len(self))
            starts = self._epoch(epoch)[1]
            window = int(np.searchsorted(starts, begin, side="right")) - 1
            block, place = self._samples(epoch, window)
            offset = begin - int(starts[window])
            taken = min(len(block) - offset, stop - first)
            blocks.append(block[offset : offset + taken])
            places.append(place[offset : offset + taken])
            first += taken
        return np.concatenate(blocks), np.concatenate(places)

    def _draw_epoch(self, epoch: int) -> tuple[Integers, Integers]:
        """The blocks in the order of an epoch, and the position at which each window begins."""
        order = numpy_generator(self.seed, "stream blocks", epoch).permutation(len(self.sizes))
        ends = np.cumsum(self.sizes[order])
        starts = np.concatenate([[0], ends[self.window - 1 : -1 : self.window]])
        return order, starts.astype(np.int64)

    def _draw_window(self, epoch: int, window: int) -> tuple[Integers, Integers]:
        blocks = self._epoch(epoch)[0][window * self.window : (window + 1) * self.window]
        block = np.repeat(blocks, self.sizes[blocks])
        place = np.concatenate([np.arange(size) for size in self.sizes[blocks]])
        order = numpy_generator(self.seed, "stream window", epoch, window).permutation(len(block))
        return block[order], place[order].astype(np.int64)
