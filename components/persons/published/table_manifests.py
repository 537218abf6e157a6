"""Read a dataset from a table of images and captions: a CSV or Parquet file with one row per caption.

image_path, caption, identity, split     paths relative to the table's folder; other columns are ignored

The rows of a picture need not be neighbours, and there may be millions: SQLite sorts them in a temporary database, which spills to
disk when it grows.
"""

import csv
import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.persons.published.ledger import Ledger
from components.persons.records import Record

MANIFEST_COLUMNS = ("image_path", "caption", "identity", "split")
Row = tuple[str, Any, Any, Any]
"""In the order of MANIFEST_COLUMNS; all but the path with the type of the file."""


def read_manifest(path: Path) -> Iterator[Record]:
    """Yield one record per picture of a manifest, in the order of first mention.

    Rows of one picture must agree in identity and split. Raises DataError.
    """
    rows = _csv(path) if path.suffix == ".csv" else _parquet(path)
    database = sqlite3.connect("")
    database.execute("CREATE TABLE manifest (picture INTEGER, image_path, caption, identity, split)")
    pictures = Ledger()
    numbered = ((pictures.number(row[0]), *map(_storable, row)) for row in rows)
    database.executemany("INSERT INTO manifest VALUES (?, ?, ?, ?, ?)", numbered)
    if not len(pictures):
        raise DataError(f"{path} has no rows")
    in_order = database.execute("SELECT image_path, caption, identity, split FROM manifest ORDER BY picture, rowid")
    for image_path, group in itertools.groupby(in_order, key=lambda row: row[0]):
        yield _record(path, image_path, list(group))


def _record(path: Path, image_path: str, group: Sequence[Row]) -> Record:
    if len({(str(identity), split) for _, _, identity, split in group}) > 1:
        raise DataError(f"{path}: {image_path} has rows of different identity or split; give each picture one")
    _, _, stated, split = group[0]
    try:
        identity = int(stated)
    except (TypeError, ValueError):
        raise DataError(f"{path}: identity {stated!r} of {image_path} is not an integer") from None
    captions = tuple((caption or "").strip() for _, caption, _, _ in group)
    return Record(image_path, identity, captions, str(split), path.stem)


def _storable(value: Any) -> Any:
    """A value of a type that SQLite has, else its text."""
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _csv(path: Path) -> Iterator[Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            reader = csv.DictReader(file)
            _require_columns(path, reader.fieldnames or ())
            for row in reader:
                yield str(row["image_path"] or ""), row["caption"], row["identity"], row["split"]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV file in UTF-8: {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        _require_columns(path, file.schema_arrow.names)
        for batch in file.iter_batches(columns=list(MANIFEST_COLUMNS)):
            columns = [batch[name].to_pylist() for name in MANIFEST_COLUMNS]
            for image_path, caption, identity, split in zip(*columns, strict=True):
                yield str(image_path or ""), caption, identity, split
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def _require_columns(path: Path, names: Iterable[str]) -> None:
    missing = [column for column in MANIFEST_COLUMNS if column not in set(names)]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; expected {', '.join(MANIFEST_COLUMNS)}")
