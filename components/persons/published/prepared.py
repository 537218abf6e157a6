"""Read a dataset in the internal form (written by `curate`, or prepared in another workspace) as records."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import DataError
from components.persons.pictures import shard_address
from components.persons.published.fields import text
from components.persons.records import Record
from components.persons.shards import DATASET_MANIFEST, MANIFEST_SCHEMA


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds a dataset in the internal form."""
    return (folder / DATASET_MANIFEST).is_file() and (folder / "shards").is_dir()


def prepared_records(files: Sequence[Path], folder: Path, source: str) -> Iterator[Record]:
    """Yield one record per picture, in the order of the manifest; the pictures stay in their shards. Raises DataError.

    The first short caption of a picture is its `short_caption`; its source stays.
    """
    for path in files:
        for rows in _pictures(path):
            first = rows[0]
            # The empty caption of a picture without one, as `curate` writes it, is none.
            long = [row for row in rows if row["form"] == "long" and text(row["caption"])]
            short = [text(row["caption"]) for row in rows if row["form"] == "short"]
            wrong = tuple(tuple(row["wrong_words"]) for row in long)
            yield Record(
                image_path=shard_address(first["shard"], first["row"]),
                identity=first["identity"],
                captions=tuple(text(row["caption"]) for row in long),
                split=first["split"],
                source=first["source"],
                short_caption=short[0] if short else None,
                attributes=json.loads(first["attributes"]),
                wrong_words=wrong if any(wrong) else (),
            )


def _pictures(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the manifest's rows of each picture, which are neighbours."""
    try:
        file = pq.ParquetFile(path)
        if file.schema_arrow.names != MANIFEST_SCHEMA.names:
            raise DataError(f"{path} has columns {file.schema_arrow.names}; expected {MANIFEST_SCHEMA.names}")
        rows = (row for batch in file.iter_batches(batch_size=4096) for row in batch.to_pylist())
        for _, group in itertools.groupby(rows, key=lambda row: row["image_id"]):
            yield list(group)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
