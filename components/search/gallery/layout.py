"""Names and formats of the files of a gallery."""

import os
from pathlib import Path

import pyarrow as pa

FORMAT = 2
CURRENT, SOURCE, TOMBSTONES, LOCK = "current", "source.json", "forgotten.jsonl", "lock"
VERSIONS, THUMBNAILS, UNFINISHED = "versions", "thumbnails", "unfinished"
REFERENCE, VECTORS, TABLE, LEFT_OUT, APPROXIMATE = (
    "gallery.json",
    "vectors.npy",
    "pictures.parquet",
    "left_out.csv",
    "approximate.index",
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sha256", pa.string()),
        ("file", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("identity", pa.string()),
        ("caption", pa.string()),
        ("files", pa.list_(pa.string())),
        ("identities", pa.list_(pa.string())),
    ]
)
"""The table's own columns, before those of the source.

id: the first 16 hexadecimal digits of the SHA-256 of the picture's bytes. file: as the source names it; `files`: every file with
equal bytes, `file` the first. identity, caption: null where the source has none; several captions of a picture are lines of one
text. identities: every identity that the source gives to these bytes, `identity` the first.
"""
ID_DIGITS = 16


def picture_id(sha256: str) -> str:
    """Return the id of a picture with this digest."""
    return sha256[:ID_DIGITS]


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, so that a rename in it outlives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
