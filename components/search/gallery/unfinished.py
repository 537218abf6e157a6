"""What an update has embedded so far, in files that outlive its process; the next update goes on from them.

unfinished/model.json       digest and dimension of the model whose vectors these are
unfinished/000001.npy       vectors, float32 (n, D)
unfinished/000001.parquet   the pictures of the rows; renamed into place after the vectors, so that its presence says "complete"
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.files import remove_temporaries, temporary_beside, write_atomically, written_atomically
from components.search.gallery import layout
from components.search.gallery.writing import write_vectors

_SCHEMA = pa.schema(
    [("sha256", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("identities", pa.list_(pa.string()))]
)
_MODEL = "model.json"


@dataclass(frozen=True)
class Embedded:
    """Pictures that were embedded: vectors (n, D) float32, and for each its digest, size and identities."""

    digests: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    identities: Sequence[Sequence[str]]
    vectors: np.ndarray


class Unfinished:
    """The folder of a gallery's embedded pictures. For the process that holds the gallery's lock."""

    def __init__(self, gallery: Path) -> None:
        self.folder = gallery / layout.UNFINISHED
        self._places: dict[str, tuple[int, int]] = {}  # SHA-256 -> shard, row
        self.sizes: dict[str, tuple[int, int]] = {}
        self._last = 0
        if self.folder.is_dir():
            remove_temporaries(self.folder)
            for file in set(self.folder.glob("*.npy")) - set(map(self._vectors, self._numbers())):
                file.unlink()  # a process was killed before it wrote the pictures
            for number in self._numbers():
                self._learn(number, self._table(number))

    def belongs_to(self, model: str) -> bool:
        """Return whether the vectors are of the model with this digest; True where there are none."""
        return not self._places or self._model() == model

    def begin(self, model: str) -> None:
        """Prepare the folder for vectors of this model. Raises ValueError where it holds those of another."""
        if not self.belongs_to(model):
            raise ValueError(f"{self.folder}: holds vectors of another model")
        if not self.folder.is_dir() or self._model() != model:
            write_atomically(self.folder / _MODEL, json.dumps({"digest": model}) + "\n")

    def add(self, part: Embedded) -> None:
        """Store pictures; they are kept when this returns."""
        number = self._last + 1
        rows, dimension = part.vectors.shape
        with written_atomically(self._vectors(number)) as temporary:
            write_vectors(temporary, [part.vectors], rows, dimension, np.dtype(np.float32))
        columns: Mapping[str, Any] = {
            "sha256": list(part.digests),
            "width": [width for width, _ in part.sizes],
            "height": [height for _, height in part.sizes],
            "identities": [list(each) for each in part.identities],
        }
        table = pa.table(dict(columns), schema=_SCHEMA)
        with written_atomically(self._pictures(number)) as temporary:
            pq.write_table(table, temporary)
        layout.sync_folder(self.folder)
        self._learn(number, table)

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    def __len__(self) -> int:
        return len(self._places)

    def vectors(self, digests: Sequence[str]) -> np.ndarray:
        """Return the vectors of these pictures, float32 (n, D), n at least 1."""
        places = [self._places[digest] for digest in digests]
        opened = {number: np.load(self._vectors(number), mmap_mode="r") for number in {number for number, _ in places}}
        return np.stack([opened[number][row] for number, row in places])

    def digests_of(self, identities: Sequence[str]) -> Iterator[str]:
        """Yield the digests of the pictures with one of these identities."""
        wanted = set(identities)
        for number in self._numbers():
            for row in self._table(number).to_pylist():
                if wanted & set(row["identities"]):
                    yield row["sha256"]

    def remove(self, digests: Sequence[str]) -> None:
        """Remove pictures: the shards that hold one are written again without it."""
        gone = set(digests)
        for number in self._numbers():
            rows = self._table(number).to_pylist()
            kept = [place for place, row in enumerate(rows) if row["sha256"] not in gone]
            if len(kept) == len(rows):
                continue
            if kept:
                vectors = np.load(self._vectors(number))[kept]
                left = [rows[place] for place in kept]
                self.add(
                    Embedded(
                        [row["sha256"] for row in left],
                        [(row["width"], row["height"]) for row in left],
                        [row["identities"] for row in left],
                        vectors,
                    )
                )
            self._pictures(number).unlink()
            self._vectors(number).unlink()
        self._places = {digest: place for digest, place in self._places.items() if digest not in gone}
        self.sizes = {digest: size for digest, size in self.sizes.items() if digest not in gone}

    def discard(self) -> None:
        """Remove all of it; renamed first, so that a kill leaves all or nothing (`purge` removes the rest)."""
        if self.folder.is_dir():
            renamed = temporary_beside(self.folder)
            os.replace(self.folder, renamed)
            shutil.rmtree(renamed)
        self._places, self.sizes, self._last = {}, {}, 0

    def _learn(self, number: int, table: pa.Table) -> None:
        columns = (table[name].to_pylist() for name in ("sha256", "width", "height"))
        for row, (digest, width, height) in enumerate(zip(*columns, strict=True)):
            self._places[digest], self.sizes[digest] = (number, row), (width, height)
        self._last = max(self._last, number)

    def _numbers(self) -> list[int]:
        return sorted(int(file.stem) for file in self.folder.glob("*.parquet") if file.stem.isdecimal())

    def _model(self) -> str | None:
        try:
            return str(json.loads((self.folder / _MODEL).read_text(encoding="utf-8"))["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _table(self, number: int) -> pa.Table:
        return pq.read_table(self._pictures(number), schema=_SCHEMA)

    def _pictures(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"

    def _vectors(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npy"
