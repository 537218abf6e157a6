"""Removes from a gallery's folder what tombstones name, and thumbnails that no version needs. For the holder of its lock."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.files import remove_temporaries
from components.search.gallery import layout
from components.search.gallery.reading import Gallery, current_version
from components.search.gallery.sources import captions_file
from components.search.gallery.thumbnails import thumbnail_path
from components.search.gallery.tombstones import tombstones
from components.search.gallery.unfinished import Unfinished
from components.search.gallery.writing import (
    read_left_out,
    remove_version,
    remove_versions,
    switch,
    version_names,
    write_version,
)

_BLOCK = 8192
"""Vectors copied at once."""
BuildIndex = Callable[[Path, np.ndarray], Mapping[str, Any]]


def digests_of(gallery: Path, pictures: Sequence[str], identities: Sequence[str]) -> set[str]:
    """Return the SHA-256 of every picture that any version, or an unfinished update, has by one of these ids or identities."""
    found: set[str] = set()
    wanted = pa.array(identities, pa.string())
    for name in version_names(gallery):
        table = pq.read_table(gallery / layout.VERSIONS / name / layout.TABLE, columns=["id", "sha256", "identities"])
        found |= set(table.filter(pc.is_in(table["id"], pa.array(pictures, pa.string())))["sha256"].to_pylist())
        if identities:
            names = table["identities"].combine_chunks()
            rows = pc.list_parent_indices(names).filter(pc.is_in(pc.list_flatten(names), wanted))
            found |= set(table["sha256"].take(rows).to_pylist())
    unfinished = Unfinished(gallery)
    found |= set(unfinished.digests_of(identities))
    return found | {digest for digest in unfinished.sizes if layout.picture_id(digest) in set(pictures)}


def purge(gallery: Path, build_index: BuildIndex | None = None) -> None:
    """Remove every trace of the pictures that have a tombstone: vectors, rows, thumbnails, versions that hold one.

    If the version that answers holds one, a new one without it answers first. May be killed at any moment and called again.
    """
    gone = tombstones(gallery)
    remove_temporaries(gallery)
    remove_versions(gallery)
    if not gone:
        return
    holding = [name for name in version_names(gallery) if gone & _digests(gallery, name)]
    if holding:
        if current_version(gallery) in holding:
            switch(gallery, _write_without(gallery, gone, build_index))
        for name in holding:
            remove_version(gallery, name)
    unfinished = Unfinished(gallery)
    unfinished.remove([digest for digest in unfinished.sizes if digest in gone])
    for digest in gone:
        thumbnail_path(gallery, layout.picture_id(digest)).unlink(missing_ok=True)


def sweep_thumbnails(gallery: Path) -> None:
    """Remove the thumbnails of pictures that are in no version and in no unfinished update."""
    needed = {layout.picture_id(digest) for digest in Unfinished(gallery).sizes}
    for name in version_names(gallery):
        needed |= {layout.picture_id(digest) for digest in _digests(gallery, name)}
    for file in _thumbnails(gallery):
        if Path(file.name).stem not in needed:
            with suppress(FileNotFoundError):
                os.unlink(file.path)


def _thumbnails(gallery: Path) -> Iterator["os.DirEntry[str]"]:
    folder = gallery / layout.THUMBNAILS
    for place in os.scandir(folder) if folder.is_dir() else ():
        with os.scandir(place.path) as files:
            yield from files


def _digests(gallery: Path, version: str) -> set[str]:
    table = pq.read_table(gallery / layout.VERSIONS / version / layout.TABLE, columns=["sha256"])
    return set(table["sha256"].to_pylist())


def _write_without(gallery: Path, gone: frozenset[str], build_index: BuildIndex | None) -> str:
    old = Gallery.open(gallery)
    keep = np.array([digest not in gone for digest in old.table["sha256"].to_pylist()])
    kept = np.flatnonzero(keep)
    names = set(pc.list_flatten(old.table["files"].filter(pa.array(~keep))).to_pylist())
    names |= {captions_file(name) for name in names}
    left_out = [(file, reason) for file, reason in read_left_out(old.folder) if file not in names]
    return write_version(
        gallery,
        (old.vectors[kept[begin : begin + _BLOCK]] for begin in range(0, len(kept), _BLOCK)),
        old.table.take(pa.array(kept, pa.int64())).combine_chunks(),
        dimension=old.dimension,
        dtype=str(old.vectors.dtype),
        model=old.model,
        settings=old.settings,
        source=old.source,
        left_out=left_out,
        build_index=build_index if old.approximate is not None else None,
    )
