"""Vectors clustered as embeddings are, for the benchmark of search.

Every picture is one of four of its person, and every person has one of the looks that some fifty people share. A vector is a mean
that all pictures share, plus draws for the look, the person and the picture, of 40, 30 and 30 per cent of the variance, in random
directions whose variances fall as 1 / rank. That gives cosines as CLIP's embeddings have them: about 0.5 between two pictures,
0.87 with the most similar one, and 0.3 between a sentence and the pictures that fit it best. Sentences share another mean, and 36
per cent of their variance is what they say of a look and a person. Everything follows from a seed.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

DIMENSION, PER_PERSON, PER_LOOK = 512, 4, 50
LOOK, PERSON, PICTURE = 0.4, 0.3, 0.3
SAID = 0.36
"""Of a sentence's variance, what it says of the look and the person."""
QUERIES = 200
"""Sentences that are written beside the vectors."""
_BLOCK = 20_000
_SEED = 0


class Generator:
    """Unit vectors of `count` pictures, and of sentences about them."""

    def __init__(self, count: int, seed: int = _SEED) -> None:
        self.count, self.seed = count, seed
        rotation, _ = np.linalg.qr(np.random.default_rng([seed, 0]).standard_normal((DIMENSION, DIMENSION)))
        self.axes = rotation.astype(np.float32)
        spread = np.arange(1, DIMENSION + 1, dtype=np.float32) ** -0.5
        self.spread = spread / np.linalg.norm(spread)
        persons = count // PER_PERSON + 1
        self.looks = np.random.default_rng([seed, 1]).integers(0, max(1, persons // PER_LOOK), persons)

    def pictures(self) -> Iterator[np.ndarray]:
        """Yield float32 blocks (n, DIMENSION)."""
        for begin in range(0, self.count, _BLOCK):
            rows = np.arange(begin, min(begin + _BLOCK, self.count))
            own = np.random.default_rng([self.seed, 2, begin]).standard_normal((len(rows), DIMENSION), np.float32)
            yield self._unit(self._content(rows // PER_PERSON) + PICTURE**0.5 * own, self.axes[:, -1])

    def sentences(self, number: int) -> np.ndarray:
        """Return float32 (number, DIMENSION)."""
        random = np.random.default_rng([self.seed, 3])
        persons = random.integers(0, self.count // PER_PERSON, number)
        rest = random.standard_normal((number, DIMENSION), np.float32)
        said = self._content(persons) / (LOOK + PERSON) ** 0.5
        return self._unit(SAID**0.5 * said + (1 - SAID) ** 0.5 * rest, self.axes[:, -2])

    def _content(self, persons: np.ndarray) -> np.ndarray:
        return LOOK**0.5 * self._drawn(4, self.looks[persons]) + PERSON**0.5 * self._drawn(5, persons)

    def _drawn(self, kind: int, numbers: np.ndarray) -> np.ndarray:
        """One draw per number, the same whenever it is asked for."""
        drawn = np.empty((len(numbers), DIMENSION), np.float32)
        blocks = numbers // 4096
        for block in np.unique(blocks):
            inside = blocks == block
            block_draws = np.random.default_rng([self.seed, kind, block]).standard_normal((4096, DIMENSION), np.float32)
            drawn[inside] = block_draws[numbers[inside] % 4096]
        return drawn

    def _unit(self, content: np.ndarray, mean: np.ndarray) -> np.ndarray:
        vectors = (content * self.spread) @ self.axes.T + mean
        unit: np.ndarray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return unit


def write_vectors(folder: Path, size: int) -> None:
    """Write the float32 and the float16 file of a size, and the vectors of QUERIES sentences."""
    if queries_file(folder, size).exists():
        return
    generator = Generator(size)
    files = {
        name: np.lib.format.open_memmap(vectors_file(folder, size, name), "w+", np.dtype(name), (size, DIMENSION))
        for name in ("float32", "float16")
    }
    begin = 0
    for block in generator.pictures():
        for file in files.values():
            file[begin : begin + len(block)] = block
        begin += len(block)
    for file in files.values():
        file.flush()
    np.save(queries_file(folder, size), generator.sentences(QUERIES))


def vectors_file(folder: Path, size: int, precision: str) -> Path:
    """Where `write_vectors` writes the vectors of a precision."""
    return folder / f"{size}.{precision}.npy"


def queries_file(folder: Path, size: int) -> Path:
    """Where `write_vectors` writes the vectors of sentences."""
    return folder / f"{size}.queries.npy"
