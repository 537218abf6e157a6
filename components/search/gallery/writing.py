"""Writes a version of a gallery and lets it answer. For the process that holds the gallery's lock."""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import DataError
from components.files import file_digest, remove_temporaries, temporary_beside, write_atomically
from components.search.gallery import layout

KEPT_VERSIONS = 2
"""The one that answers, and the one before, which readers may still have to open."""
Block = np.ndarray
"""Rows of vectors, (n, D)."""


def write_version(
    gallery: Path,
    blocks: Iterable[Block],
    table: pa.Table,
    *,
    dimension: int,
    dtype: str,
    model: Mapping[str, Any],
    settings: Mapping[str, Any],
    source: Mapping[str, Any],
    left_out: Sequence[tuple[str, str]] = (),
    build_index: Callable[[Path, np.ndarray], Mapping[str, Any]] | None = None,
) -> str:
    """Write a version and return its name; it answers when `switch` was called.

    blocks: unit vectors in the order of `table`, together (N, dimension). dtype: "float32" or "float16". left_out: files and
    reasons. build_index: called with the path of the approximate index to write and the vectors; returns facts to record.

    Raises DataError where vectors and table do not fit together, OSError where the disk is full.
    """
    name = _next_name(gallery)
    versions = gallery / layout.VERSIONS
    versions.mkdir(parents=True, exist_ok=True)
    final = versions / name
    temporary = temporary_beside(final)
    temporary.mkdir()
    try:
        rows = write_vectors(temporary / layout.VECTORS, blocks, table.num_rows, dimension, np.dtype(dtype))
        if rows != table.num_rows:
            raise DataError(f"{gallery}: {rows} vectors for {table.num_rows} pictures")
        pq.write_table(table, temporary / layout.TABLE, compression="zstd")
        _write_left_out(temporary / layout.LEFT_OUT, left_out)
        facts: Mapping[str, Any] | None = None
        if build_index is not None and rows:
            vectors = np.load(temporary / layout.VECTORS, mmap_mode="r")
            facts = build_index(temporary / layout.APPROXIMATE, vectors)
        reference = {
            "format": layout.FORMAT,
            "size": rows,
            "dimension": dimension,
            "dtype": dtype,
            "model": dict(model),
            "settings": dict(settings),
            "source": dict(source),
            "files": {file.name: _facts_of(file) for file in sorted(temporary.iterdir())},
            "approximate": None if facts is None else dict(facts),
        }
        (temporary / layout.REFERENCE).write_text(
            json.dumps(reference, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        for file in temporary.iterdir():
            _sync_file(file)
        layout.sync_folder(temporary)
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    layout.sync_folder(versions)
    return name


def switch(gallery: Path, name: str) -> None:
    """Let the version `name` answer: readers see the former one or this one."""
    write_atomically(gallery / layout.CURRENT, name + "\n")
    layout.sync_folder(gallery)


def remove_versions(gallery: Path, keep: int = KEPT_VERSIONS) -> None:
    """Remove what killed updates have left, and all versions but the newest `keep` of those up to the one that answers."""
    versions = gallery / layout.VERSIONS
    if not versions.is_dir():
        return
    remove_temporaries(versions)
    current = _current(gallery)
    names = sorted(version_names(gallery))
    kept = [name for name in names if current is not None and name <= current][-keep:]
    for name in names:
        if name not in kept:
            remove_version(gallery, name)


def remove_version(gallery: Path, name: str) -> None:
    """Remove a version; it is renamed first, so that no reader opens one that is half removed."""
    folder = gallery / layout.VERSIONS / name
    renamed = temporary_beside(folder)
    os.replace(folder, renamed)
    shutil.rmtree(renamed)


def read_left_out(version: Path) -> list[tuple[str, str]]:
    """Return the files that the version in this folder leaves out, each with the reason."""
    with open(version / layout.LEFT_OUT, newline="", encoding="utf-8") as file:
        return [(name, reason) for name, reason in list(csv.reader(file))[1:]]


def version_names(gallery: Path) -> list[str]:
    """Return the names of the complete versions."""
    versions = gallery / layout.VERSIONS
    return [each.name for each in versions.iterdir() if re.fullmatch(r"\d{6,}", each.name)] if versions.is_dir() else []


def write_vectors(path: Path, blocks: Iterable[Block], rows: int, dimension: int, dtype: np.dtype[Any]) -> int:
    """Write an .npy file of (rows, dimension) block by block; return the rows that there were."""
    written = 0
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, dimension)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            if block.ndim != 2 or block.shape[1] != dimension or not np.isfinite(block).all():
                raise DataError(f"vectors of shape {block.shape}: finite ones of {dimension} numbers are needed")
            # Not tofile, whose error on a full disk does not say that it is full.
            file.write(np.ascontiguousarray(block, dtype=dtype).tobytes())
            written += len(block)
    return written


def _current(gallery: Path) -> str | None:
    file = gallery / layout.CURRENT
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def _next_name(gallery: Path) -> str:
    known = [*version_names(gallery), _current(gallery) or "0"]
    return f"{max(map(int, known)) + 1:06d}"


def _write_left_out(path: Path, left_out: Sequence[tuple[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "reason"))
    writer.writerows(left_out)
    path.write_bytes(text.getvalue().encode("utf-8", "replace"))


def _facts_of(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": file_digest(file)}


def _sync_file(file: Path) -> None:
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
