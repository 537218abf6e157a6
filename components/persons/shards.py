"""The internal form of a dataset: a manifest with one row per caption, and shards of encoded pictures.

    manifest.parquet                 MANIFEST_SCHEMA, in the order the pictures were added
    shards/<split>-00000.parquet     image_id int64, image binary (PNG or JPEG, as in the source)

Fixed Parquet settings make the bytes a function of the content. Pictures are stored uncompressed (they are encoded) in small row
groups, so that reading one touches a few hundred kilobytes of a memory-mapped file.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image

from components.errors import DataError, ParameterError
from components.persons.pictures import PictureReader
from components.persons.pixels import decode_rgb, resized
from components.persons.records import SPLITS, Record

FORMS = ("short", "long")
DATASET_MANIFEST = "manifest.parquet"
MANIFEST_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("shard", pa.string()),
        ("row", pa.int32()),
        ("identity", pa.int64()),
        ("caption_id", pa.int64()),
        ("caption", pa.string()),
        ("form", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("attributes", pa.string()),
        ("wrong_words", pa.list_(pa.int32())),
    ]
)
SHARD_SCHEMA = pa.schema([("image_id", pa.int64()), ("image", pa.binary())])
ROWS_PER_GROUP = 64
"""Pictures per row group of a shard."""
_MANIFEST_ROWS = 32768  # per row group: the writer's memory, and what reading a few rows decompresses


@dataclass(frozen=True)
class CaptionRow:
    """A caption of the manifest; `wrong_words` are positions in `caption.split()`."""

    caption: str
    form: str = "long"
    wrong_words: tuple[int, ...] = ()


class DatasetWriter:
    """Writes a dataset folder picture by picture; the same calls in the same order give the same bytes.

    Use as a context manager: the manifest is written on a clean exit, and a folder without one is incomplete.
    """

    def __init__(self, folder: str | Path, *, images_per_shard: int = 2048, bytes_per_shard: int = 256 << 20) -> None:
        if images_per_shard < 1 or bytes_per_shard < 1:
            raise ParameterError(f"a shard needs room: images_per_shard={images_per_shard}, bytes={bytes_per_shard}")
        self.folder = Path(folder)
        (self.folder / "shards").mkdir(parents=True, exist_ok=True)
        if (self.folder / DATASET_MANIFEST).exists() or any((self.folder / "shards").iterdir()):
            raise ParameterError(f"{self.folder} already holds a dataset; write to an empty folder")
        self._images_per_shard, self._bytes_per_shard = images_per_shard, bytes_per_shard
        self._columns: dict[str, list[Any]] = {name: [] for name in MANIFEST_SCHEMA.names}
        self._manifest: pq.ParquetWriter | None = None
        self._captions = 0
        self._pending: dict[str, list[tuple[int, bytes]]] = {}
        self._pending_bytes: dict[str, int] = {}
        self._shards_written: dict[str, int] = {}
        self._images = 0

    def add(
        self,
        image: bytes,
        captions: Sequence[CaptionRow],
        *,
        identity: int,
        split: str,
        source: str,
        attributes: Mapping[str, str] | None = None,
    ) -> int:
        """Add one encoded picture with its captions; return its image_id (0, 1, 2, ... in order)."""
        if split not in SPLITS:
            raise DataError(f"split {split!r} of image {self._images}: must be one of {', '.join(SPLITS)}")
        if not captions:
            raise DataError(f"image {self._images} of identity {identity} has no caption")
        for row in captions:
            if row.form not in FORMS:
                raise DataError(f"caption form {row.form!r}: must be one of {', '.join(FORMS)}")
            words = len(row.caption.split())
            if any(not 0 <= position < words for position in row.wrong_words):
                raise DataError(f"wrong_words {row.wrong_words} leave the {words} words of {row.caption!r}")
        pending = self._pending.setdefault(split, [])
        if pending and (
            len(pending) >= self._images_per_shard or self._pending_bytes[split] + len(image) > self._bytes_per_shard
        ):
            self._flush(split)
            pending = self._pending[split]
        image_id = self._images
        shard = f"shards/{split}-{self._shards_written.get(split, 0):05d}.parquet"
        for row in captions:
            values = {
                "image_id": image_id,
                "shard": shard,
                "row": len(pending),
                "identity": identity,
                "caption_id": self._captions,
                "caption": row.caption,
                "form": row.form,
                "split": split,
                "source": source,
                "attributes": json.dumps(dict(attributes or {}), sort_keys=True),
                "wrong_words": list(row.wrong_words),
            }
            for name, value in values.items():
                self._columns[name].append(value)
            self._captions += 1
        if len(self._columns["caption"]) >= _MANIFEST_ROWS:
            self._flush_captions(_MANIFEST_ROWS)
        pending.append((image_id, image))
        self._pending_bytes[split] = self._pending_bytes.get(split, 0) + len(image)
        self._images += 1
        return image_id

    def close(self) -> None:
        """Write what is pending; the manifest is renamed into place last."""
        for split in list(self._pending):
            if self._pending[split]:
                self._flush(split)
        if self._manifest is None or self._columns["caption"]:
            self._flush_captions(_MANIFEST_ROWS)
        assert self._manifest is not None
        self._manifest.close()
        self._unfinished.replace(self.folder / DATASET_MANIFEST)

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._manifest is not None:
            self._manifest.close()
            self._unfinished.unlink(missing_ok=True)

    @property
    def _unfinished(self) -> Path:
        return self.folder / f".{DATASET_MANIFEST}.unfinished"

    def _flush_captions(self, count: int) -> None:
        """Write the first `count` pending rows of the manifest as a row group."""
        if self._manifest is None:
            self._manifest = pq.ParquetWriter(self._unfinished, MANIFEST_SCHEMA, compression="zstd", **PARQUET_SETTINGS)
        table = pa.table({name: column[:count] for name, column in self._columns.items()}, schema=MANIFEST_SCHEMA)
        self._manifest.write_table(table)
        for column in self._columns.values():
            del column[:count]

    def _flush(self, split: str) -> None:
        number = self._shards_written.get(split, 0)
        ids, images = zip(*self._pending[split], strict=True)
        table = pa.table({"image_id": ids, "image": images}, schema=SHARD_SCHEMA)
        path = self.folder / "shards" / f"{split}-{number:05d}.parquet"
        pq.write_table(table, path, compression="none", row_group_size=ROWS_PER_GROUP, **PARQUET_SETTINGS)
        self._shards_written[split] = number + 1
        self._pending[split], self._pending_bytes[split] = [], 0


PARQUET_SETTINGS: dict[str, Any] = {
    "use_dictionary": False,
    "write_statistics": False,
    "version": "2.6",
    "data_page_version": "1.0",
    "store_schema": False,
}
"""Parquet settings that the bytes of a file depend on."""


def write_records(
    records: Iterable[Record], folder: str | Path, *, images_per_shard: int = 2048, bytes_per_shard: int = 256 << 20
) -> None:
    """Write validated records (whose `image_path` can be opened) in the internal form.

    Raises:
        DataError: a picture cannot be read; ParameterError: `folder` already holds a dataset.
    """
    pictures = PictureReader()
    with DatasetWriter(folder, images_per_shard=images_per_shard, bytes_per_shard=bytes_per_shard) as writer:
        for record in records:
            try:
                image = pictures.read(record.image_path)
            except OSError as error:
                raise DataError(f"cannot read {record.image_path}: {error.strerror}; validate the records") from error
            wrong = record.wrong_words or ((),) * len(record.captions)
            captions = [CaptionRow(c, "long", w) for c, w in zip(record.captions, wrong, strict=True)]
            if record.short_caption is not None:
                captions.insert(0, CaptionRow(record.short_caption, "short"))
            writer.add(
                image,
                captions,
                identity=record.identity,
                split=record.split,
                source=record.source,
                attributes=record.attributes,
            )


class Rows(Sequence[dict[str, Any]]):
    """Manifest rows as a read-only sequence of dictionaries, made on access."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.table.slice(int(index) % len(self), 1).to_pylist()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from batch.to_pylist()

    def column(self, name: str) -> list[Any]:
        """Return one column as a list, e.g. `rows.column("identity")`."""
        return self.table[name].to_pylist()


class PersonDataset:
    """Reads a dataset folder. Shards are memory-mapped, and up to `cache_bytes` of row groups are cached.

    `manifest` replaces the folder's own, as with other captions of the same pictures. Pictures may be read from several threads.
    Can be pickled; the copy opens the folder again.

    Raises DataError where the folder holds no dataset.
    """

    def __init__(self, folder: str | Path, *, cache_bytes: int = 512 << 20, manifest: pa.Table | None = None) -> None:
        self.folder, self._replaced = Path(folder), manifest
        path = self.folder / DATASET_MANIFEST
        if not path.is_file():
            raise DataError(f"{path} is missing: {self.folder} is not a prepared dataset; run the stage that writes it")
        self.manifest: pa.Table = pq.read_table(path, memory_map=True) if manifest is None else manifest
        if self.manifest.schema.names != MANIFEST_SCHEMA.names:
            raise DataError(f"{path} has columns {self.manifest.schema.names}; expected {MANIFEST_SCHEMA.names}")
        ids = self.manifest["image_id"].to_numpy()
        self.image_ids, first = np.unique(ids, return_index=True)
        self._shard_of = self.manifest["shard"].dictionary_encode().combine_chunks()
        self._first_row = first
        self._row_of = self.manifest["row"].to_numpy()
        self._files: dict[str, pq.ParquetFile] = {}
        self._groups: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()
        self._cached, self._cache_bytes = 0, cache_bytes
        self._lock = threading.Lock()  # of the files and groups

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "cache_bytes": self._cache_bytes, "manifest": self._replaced}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def rows(self, split: str | None = None, form: str | None = None) -> Rows:
        """Return the manifest's rows of one split and form; None means any."""
        table = self.manifest
        for name, value, allowed in (("split", split, SPLITS), ("form", form, FORMS)):
            if value is not None:
                if value not in allowed:
                    raise ParameterError(f"{name} {value!r}: must be one of {', '.join(allowed)}")
                table = table.filter(pc.equal(table[name], value))
        return Rows(table)

    def needed_rows(self, split: str, form: str | None = None) -> Rows:
        """As `rows`, for who cannot do without any. Raises DataError where there are none."""
        found = self.rows(split, form)
        if not len(found):
            captions = f"{form} caption" if form else "caption"
            counts = ", ".join(f"{name} {len(self.rows(name, form)):,}" for name in SPLITS)
            raise DataError(
                f"{self.folder}: no {captions} in the split {split!r} ({captions}s: {counts}); choose a data set that has "
                "some, or another split"
            )
        return found

    def sources(self, split: str) -> list[str]:
        """Return the names of the data sets that the pictures of a split are from, as their records state them, sorted."""
        return sorted(pc.unique(self.rows(split).table["source"]).to_pylist())

    def forms(self) -> set[str]:
        """Return the caption forms of this dataset."""
        return set(pc.unique(self.manifest["form"]).to_pylist())

    def image_bytes(self, image_id: int) -> bytes:
        """Return the encoded picture. Raises DataError for an unknown image_id."""
        index = int(np.searchsorted(self.image_ids, image_id))
        if index == len(self.image_ids) or self.image_ids[index] != image_id:
            raise DataError(f"image_id {image_id} is not in {self.folder / DATASET_MANIFEST}")
        first = int(self._first_row[index])
        shard, row = self._shard_of[first].as_py(), int(self._row_of[first])
        with self._lock:
            group = self._group(shard, row // ROWS_PER_GROUP)
        return group[row % ROWS_PER_GROUP].as_py()

    def picture(self, image_id: int) -> Image.Image:
        """Return the picture in RGB, at its own size. Raises DataError where it cannot be decoded."""
        data = self.image_bytes(image_id)
        try:
            return decode_rgb(data)
        except DataError as error:
            raise DataError(f"image_id {image_id} of {self.folder} {error}") from error

    def pixels(self, image_ids: Sequence[int] | torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Decode pictures and squash them to `height` x `width` (bilinear, antialiased): uint8 (N, 3, height, width)."""
        batch = np.empty(
            (len(image_ids), 3, height, width), dtype=np.uint8
        )  # by NumPy, which starts no threads of its own
        for slot, image_id in enumerate(image_ids):
            batch[slot] = resized(self.picture(int(image_id)), height, width).transpose(2, 0, 1)
        return torch.from_numpy(batch)

    def _group(self, shard: str, group: int) -> pa.ChunkedArray:
        key = (shard, group)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        if shard not in self._files:
            path = self.folder / shard
            if not path.is_file():
                raise DataError(f"{path} is missing although {DATASET_MANIFEST} lists it; write the dataset again")
            self._files[shard] = pq.ParquetFile(path, memory_map=True)
        images = self._files[shard].read_row_group(group, columns=["image"])["image"]
        self._groups[key] = images
        self._cached += images.nbytes
        while self._cached > self._cache_bytes and len(self._groups) > 1:
            self._cached -= self._groups.popitem(last=False)[1].nbytes
        return images
