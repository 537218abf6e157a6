"""Opens galleries: those of this package (format 2), and the pipeline's own index (format 1) as one of them."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.errors import DataError
from components.persons.pixels import decode_rgb
from components.persons.shards import PersonDataset
from components.search.gallery import layout
from components.search.gallery.places import Place, open_place
from components.search.gallery.thumbnails import encode_thumbnail, read_thumbnail
from components.search.index import METADATA_FILE, REFERENCE_FILE, VECTORS_FILE, GalleryIndex

_ATTEMPTS = 5
"""A version may be removed while it is opened, where two updates end in that moment; then the newer one is opened."""


class Gallery:
    """One version of a gallery, opened; immutable. Any thread may use it.

    path: the gallery's folder. folder: that of the version. table: one row per vector, `layout.SCHEMA` and the source's columns.
    vectors: (N, D) unit vectors, memory-mapped. model: {"name", "digest"}. approximate: facts about the approximate index, or None.
    source: where the pictures are.
    """

    def __init__(
        self, path: Path, version: str, folder: Path, vectors: np.ndarray, table: pa.Table, reference: Mapping[str, Any]
    ) -> None:
        self.path, self.version, self.folder = path, version, folder
        self.vectors, self.table = vectors, table
        self.model: Mapping[str, Any] = reference["model"]
        self.settings: Mapping[str, Any] = reference["settings"]
        self.source: Mapping[str, Any] = reference["source"]
        self.approximate: Mapping[str, Any] | None = reference["approximate"]

    @classmethod
    def open(cls, path: str | Path) -> "Gallery":
        """Open the version that answers; `path` is a gallery's folder, or the pipeline's data/index. Raises DataError."""
        path = Path(path)
        if is_pipeline_index(path):
            return _PipelineGallery.open(path)
        for _ in range(_ATTEMPTS):
            version = current_version(path)
            folder = path / layout.VERSIONS / version
            try:
                return cls(path, version, folder, *_read(folder))
            except FileNotFoundError:
                if current_version(path) == version:
                    break
        raise DataError(f"{path}: version {version} is incomplete; make the gallery again, or restore the folder")

    @classmethod
    def open_copy(cls, folder: Path) -> "Gallery":
        """Open a copy of one version's folder, or of the pipeline's data/index, without what was around it. Raises DataError."""
        if is_pipeline_index(folder):
            return _PipelineGallery.open(folder)
        try:
            return cls(folder, folder.name, folder, *_read(folder))
        except FileNotFoundError as error:
            raise DataError(f"{folder}: not a version of a gallery ({error.filename} missing)") from error

    @property
    def size(self) -> int:
        return len(self.vectors)

    @property
    def dimension(self) -> int:
        return int(self.vectors.shape[1])

    def row_of(self, picture_id: str) -> int | None:
        """Return the row of a picture; None for an id that this version does not hold."""
        row = int(pc.index(self.table["id"], picture_id).as_py())
        return None if row < 0 else row

    def picture(self, row: int) -> bytes:
        """Return the encoded original. Raises DataError where it is gone, or is not the one that was embedded."""
        names = self.table["files"][row].as_py()
        sha256 = self.table["sha256"][row].as_py()
        reason = ""
        for name in names:
            try:
                content = self._place.read(name)
            except DataError as error:
                reason = reason or f"{name} {error}"
                continue
            if hashlib.sha256(content).hexdigest() == sha256:
                return content
            reason = reason or f"{name} has changed since it was embedded"
        raise DataError(f"picture {self.table['id'][row].as_py()}: {reason}; update the gallery")

    def thumbnail(self, row: int) -> bytes:
        """Return a small picture in WebP. Raises DataError where there is none, and the original cannot be read."""
        stored = read_thumbnail(self.path, self.table["id"][row].as_py())
        return stored or encode_thumbnail(decode_rgb(self.picture(row)))

    @cached_property
    def _place(self) -> Place:
        return open_place(self.source)


class _PipelineGallery(Gallery):
    """The pipeline's own index, whose pictures are in the prepared set beside it. The id of a picture is its image_id."""

    @classmethod
    def open(cls, path: str | Path) -> "Gallery":
        path = Path(path)
        version = current_version(path)
        index = GalleryIndex.open(path)
        size = len(index)
        nulls = {name: pa.nulls(size, layout.SCHEMA.field(name).type) for name in layout.SCHEMA.names}
        identities = [str(each) for each in index.metadata["identity"]] if "identity" in index.metadata else None
        ids = [str(each) for each in index.image_ids.tolist()]
        columns: dict[str, Any] = {**nulls, "id": ids, "file": ids, "files": [[each] for each in ids]}
        if identities:
            columns |= {"identity": identities, "identities": [[each] for each in identities]}
        columns |= {name: values for name, values in index.metadata.items() if name != "identity"}
        reference = {
            "model": {"name": "pipeline", "digest": index.model.get("weights")},
            "settings": {},
            "source": {"kind": "pipeline", "base": str(path.absolute().parent / "people")},
            "approximate": None,
        }
        schema = pa.schema([field for field in layout.SCHEMA if field.name in columns])
        table = pa.table(
            {name: pa.array(columns[name], field.type) for name, field in zip(schema.names, schema, strict=True)}
        )
        for name in columns:
            if name not in schema.names:
                table = table.append_column(name, pa.array(columns[name]))
        if current_version(path) != version:  # the stage has replaced it meanwhile
            return cls.open(path)
        return cls(path, version, path, index.embeddings.numpy(), table, reference)

    def picture(self, row: int) -> bytes:
        return self._people.image_bytes(int(self.table["id"][row].as_py()))

    def thumbnail(self, row: int) -> bytes:
        return encode_thumbnail(decode_rgb(self.picture(row)))

    @cached_property
    def _people(self) -> PersonDataset:
        return PersonDataset(str(self.source["base"]))


def is_pipeline_index(path: Path) -> bool:
    """Return whether a folder is an index of the stage `index`, and not a gallery of this package."""
    return (path / REFERENCE_FILE).is_file() and not (path / layout.CURRENT).exists()


def current_version(path: str | Path) -> str:
    """Return the name of the version that answers; of the pipeline's index, a digest of its files' sizes and times.

    Cheap: a service may ask every second. Raises DataError where there is no gallery.
    """
    path = Path(path)
    try:
        if is_pipeline_index(path):
            facts = [(path / name).stat() for name in (REFERENCE_FILE, VECTORS_FILE, METADATA_FILE)]
            text = repr([(each.st_mtime_ns, each.st_size, each.st_ino) for each in facts])
            return hashlib.sha256(text.encode()).hexdigest()[:12]
        name = (path / layout.CURRENT).read_text(encoding="utf-8").strip()
    except OSError as error:
        what = "is not a gallery" if path.is_dir() else "does not exist"
        raise DataError(f"{path}: {what}; make one: python -m pipelines gallery {path} SOURCE") from error
    except UnicodeDecodeError:
        name = ""
    if not name.isdigit():
        raise DataError(f"{path / layout.CURRENT}: names no version; restore the folder, or make the gallery again")
    return name


def _read(folder: Path) -> tuple[np.ndarray, pa.Table, Mapping[str, Any]]:
    """Read a version's files. Raises FileNotFoundError where it was removed, DataError where a file is broken."""
    try:
        reference = json.loads((folder / layout.REFERENCE).read_text(encoding="utf-8"))
        if reference["format"] != layout.FORMAT:
            raise DataError(
                f"{folder}: gallery format {reference['format']}, this code reads {layout.FORMAT}; make the gallery again"
            )
        for name, facts in reference["files"].items():
            if (size := (folder / name).stat().st_size) != facts["bytes"]:
                raise DataError(f"{folder / name}: has {size} bytes, not {facts['bytes']}; make the gallery again")
        vectors = np.load(folder / layout.VECTORS, mmap_mode="r") if reference["size"] else _no_vectors(reference)
        table = pq.read_table(folder / layout.TABLE, memory_map=True)
        if vectors.shape != (reference["size"], reference["dimension"]) or table.num_rows != reference["size"]:
            raise DataError(f"{folder}: vectors {vectors.shape} and {table.num_rows} rows; make the gallery again")
    except FileNotFoundError:
        raise
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # Arrow's errors are among them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{folder}: not a readable version of a gallery ({reason}); make the gallery again") from error
    return vectors, table, reference


def _no_vectors(reference: Mapping[str, Any]) -> np.ndarray:
    return np.empty((0, reference["dimension"]), dtype=reference["dtype"])
