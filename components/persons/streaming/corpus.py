"""A dataset too large for memory, as blocks of a few hundred pictures that are read one at a time.

Two forms are supported: the internal one (`components.persons.shards`), and WebPerson's Parquet shards, which hold pictures and
captions together. About forty bytes per block stay in memory; five million pictures are twenty thousand blocks. The number of a
caption is its position among the streamed captions, in the order of the files. `PersonDataset.rows(split, form)` has the same
order, and a score table is indexed by it.
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.errors import DataError
from components.persons.pictures import IMAGE_COLUMN
from components.persons.published.annotations import one_line
from components.persons.shards import DATASET_MANIFEST, ROWS_PER_GROUP

BLOCK_PICTURES = 256
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """P encoded pictures and their C captions. picture_of: the picture of each caption, int64 (C,). identities: int64 (C,)."""

    pictures: Sequence[bytes]
    captions: Sequence[str]
    picture_of: Integers
    identities: Integers


class Corpus(Protocol):
    """Blocks by number. `sizes`: captions of each block, int64 (blocks,), none zero. Can be pickled."""

    sizes: Integers

    def read(self, block: int) -> Block: ...

    def captions(self) -> Iterator[str]:
        """Yield every caption in order, without the pictures (a vocabulary is made from them)."""


def open_corpus(folder: str | Path, *, split: str = "train", form: str = "long") -> Corpus:
    """Open the captions of `form` and `split` of a prepared dataset, or WebPerson's shards. Raises DataError for another folder."""
    folder = Path(folder)
    if (folder / DATASET_MANIFEST).is_file():
        return PreparedCorpus(folder, split, form)
    shards = sorted(folder.glob("data/train-*.parquet"))
    if shards:
        return HubCorpus(shards)
    raise DataError(
        f"{folder} holds neither {DATASET_MANIFEST} (run prepare) nor data/train-*.parquet (WebPerson as on the hub)"
    )


class PreparedCorpus:
    """A dataset in the internal form. A block is a few row groups of one shard, with their range of manifest rows."""

    def __init__(self, folder: Path, split: str, form: str) -> None:
        self._folder, self._split, self._form = folder, split, form
        self._shards: list[str] = []
        found = list(self._scan())
        if not found:
            raise DataError(f"{folder / DATASET_MANIFEST} lists no {form} captions in {split}")
        # (blocks, 5): shard, block in the shard, captions, first and last manifest row
        table = np.array(found, dtype=np.int64)
        self.sizes = table[:, 2].copy()
        self._where = table[:, [0, 1, 3, 4]].copy()
        self._open_files()

    def _scan(self) -> list[list[int]]:
        """Scan the manifest once, in batches. Captions of a block are neighbours in it."""
        found: list[list[int]] = []
        numbers: dict[str, int] = {}
        first = 0
        columns = ["shard", "row", "split", "form"]
        for batch in pq.ParquetFile(self._folder / DATASET_MANIFEST).iter_batches(columns=columns, batch_size=32768):
            chosen = pc.and_(pc.equal(batch["split"], self._split), pc.equal(batch["form"], self._form))
            rows = np.flatnonzero(chosen.to_numpy(zero_copy_only=False))
            shards = batch["shard"].dictionary_encode()
            names = [numbers.setdefault(name, len(numbers)) for name in shards.dictionary.to_pylist()]
            of_shard = np.array(names, dtype=np.int64)[shards.indices.to_numpy()[rows]]
            part = batch["row"].to_numpy()[rows].astype(np.int64) // BLOCK_PICTURES
            edges = np.flatnonzero((np.diff(of_shard) != 0) | (np.diff(part) != 0)) + 1
            starts = [0, *edges.tolist()] if len(rows) else []
            for start, stop in itertools.pairwise([*starts, len(rows)]):
                entry = [int(of_shard[start]), int(part[start]), stop - start]
                span = [first + int(rows[start]), first + int(rows[stop - 1])]
                if found and found[-1][:2] == entry[:2]:
                    found[-1][2] += entry[2]
                    found[-1][4] = span[1]
                else:
                    found.append([*entry, *span])
            first += batch.num_rows
        self._shards = list(numbers)
        return found

    def _open_files(self) -> None:
        self._manifest = pq.ParquetFile(self._folder / DATASET_MANIFEST, memory_map=True)
        groups = range(self._manifest.metadata.num_row_groups)
        self._ends = np.cumsum([self._manifest.metadata.row_group(group).num_rows for group in groups])
        self._texts: OrderedDict[int, pa.Table] = OrderedDict()  # manifest row groups, the latest used last

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_manifest", "_ends", "_texts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_files()

    def read(self, block: int) -> Block:
        shard, part, first, last = self._where[block].tolist()
        path = self._folder / self._shards[shard]
        begin = part * BLOCK_PICTURES
        try:
            file = pq.ParquetFile(path, memory_map=True)
            groups = range(
                begin // ROWS_PER_GROUP, -(-min(begin + BLOCK_PICTURES, file.metadata.num_rows) // ROWS_PER_GROUP)
            )
            pictures = file.read_row_groups(list(groups), columns=[IMAGE_COLUMN])[IMAGE_COLUMN].to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} is not a readable shard of pictures: {error}; write the dataset again") from error
        rows = self._manifest_rows(first, last)
        wanted = pc.and_(pc.equal(rows["split"], self._split), pc.equal(rows["form"], self._form))
        rows = rows.filter(wanted)
        picture_of = rows["row"].to_numpy().astype(np.int64) - begin
        return Block(pictures, rows["caption"].to_pylist(), picture_of, rows["identity"].to_numpy().astype(np.int64))

    def captions(self) -> Iterator[str]:
        columns = ["caption", "split", "form"]
        for batch in self._manifest.iter_batches(columns=columns, batch_size=16384):
            wanted = pc.and_(pc.equal(batch["split"], self._split), pc.equal(batch["form"], self._form))
            yield from batch.filter(wanted)["caption"].to_pylist()

    def _manifest_rows(self, first: int, last: int) -> pa.Table:
        """Manifest rows first to last, both included."""
        parts = []
        begin_group, end_group = np.searchsorted(self._ends, [first, last], side="right").tolist()
        for group in range(begin_group, end_group + 1):
            start = int(self._ends[group - 1]) if group else 0
            table = self._text_group(group)
            low = max(first - start, 0)
            parts.append(table.slice(low, min(last - start + 1, table.num_rows) - low))
        return pa.concat_tables(parts)

    def _text_group(self, group: int) -> pa.Table:
        if group not in self._texts:
            columns = ["row", "identity", "caption", "form", "split"]
            self._texts[group] = self._manifest.read_row_group(group, columns=columns)
            while len(self._texts) > 4:
                self._texts.popitem(last=False)
        self._texts.move_to_end(group)
        return self._texts[group]


class HubCorpus:
    """WebPerson's shards as on the hub: image, caption1, caption2; every picture is its own identity.

    Records are not validated beforehand: a picture that cannot be decoded, or an empty caption, fails the training that reads it,
    with its file and row. `prepare` drops such records.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        # shard, first row group, end of the row groups, pictures, number of the first
        where: list[tuple[int, int, int, int, int]] = []
        total = 0
        for number, path in enumerate(shards):
            metadata = _metadata(path)
            group = 0
            while group < metadata.num_row_groups:
                first, pictures = group, 0
                while group < metadata.num_row_groups and pictures < BLOCK_PICTURES:
                    pictures += metadata.row_group(group).num_rows
                    group += 1
                if pictures:
                    where.append((number, first, group, pictures, total))
                    total += pictures
        if not where:
            raise DataError(f"{shards[0].parent} holds no pictures")
        self._shards = [str(path) for path in shards]
        self._where = np.array(where, dtype=np.int64)
        self.sizes = 2 * self._where[:, 3]

    def read(self, block: int) -> Block:
        shard, begin, end, pictures, first = self._where[block].tolist()
        path, columns = self._shards[shard], [IMAGE_COLUMN, "caption1", "caption2"]
        try:
            table = pq.ParquetFile(path, memory_map=True).read_row_groups(list(range(begin, end)), columns=columns)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DataError(f"{path} is not a readable shard of WebPerson: {error}") from error
        found: list[Any] = [
            entry.get("bytes") if isinstance(entry, dict) else entry for entry in table[IMAGE_COLUMN].to_pylist()
        ]
        pairs = zip(table["caption1"].to_pylist(), table["caption2"].to_pylist(), strict=True)
        captions = [one_line(caption) for pair in pairs for caption in pair]
        for row, picture in enumerate(found):
            if not isinstance(picture, bytes) or not all(captions[2 * row : 2 * row + 2]):
                what = "no picture" if not isinstance(picture, bytes) else "an empty caption"
                raise DataError(
                    f"{path}: picture {first + row} of the set has {what}; run prepare, which drops such records"
                )
        picture_of = np.repeat(np.arange(pictures, dtype=np.int64), 2)
        return Block(found, captions, picture_of, first + picture_of)

    def captions(self) -> Iterator[str]:
        for path in self._shards:
            for batch in pq.ParquetFile(path).iter_batches(columns=["caption1", "caption2"]):
                for pair in zip(batch["caption1"].to_pylist(), batch["caption2"].to_pylist(), strict=True):
                    yield from map(one_line, pair)


def _metadata(path: Path) -> Any:
    try:
        metadata = pq.ParquetFile(path).metadata
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    names = {metadata.schema.column(i).path.split(".")[0] for i in range(metadata.num_columns)}
    if missing := {IMAGE_COLUMN, "caption1", "caption2"} - names:
        raise DataError(f"{path} lacks the columns {', '.join(sorted(missing))}; a shard of WebPerson has them")
    return metadata
