"""Any image + caption data set as a table: a CSV or Parquet file with one row a caption.

image_path, caption, identity, split     paths relative to the table's folder; other columns are passed over
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.persons.records import Record

MANIFEST_COLUMNS = ("image_path", "caption", "identity", "split")


def read_manifest(path: Path) -> list[Record]:
    """The records of a manifest. Rows with the same picture become one record; their identity and split must agree."""
    rows = _csv(path) if path.suffix == ".csv" else _parquet(path)
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(str(row["image_path"] or ""), []).append(row)
    if not grouped:
        raise DataError(f"{path} has no rows")
    return [_record(path, image_path, group) for image_path, group in grouped.items()]


def _record(path: Path, image_path: str, group: Sequence[Mapping[str, Any]]) -> Record:
    if len({(str(row["identity"]), row["split"]) for row in group}) > 1:
        raise DataError(f"{path}: {image_path} has rows of different identity or split; give each picture one")
    try:
        identity = int(group[0]["identity"])
    except (TypeError, ValueError):
        raise DataError(f"{path}: identity {group[0]['identity']!r} of {image_path} is not an integer") from None
    captions = tuple((row["caption"] or "").strip() for row in group)
    return Record(image_path, identity, captions, str(group[0]["split"]), path.stem)


def _csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(
            newline="", encoding="utf-8-sig"
        ) as file:  # a byte order mark, as spreadsheets write it, is none of the header
            reader = csv.DictReader(file)
            _require_columns(path, reader.fieldnames or ())
            return list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV file in UTF-8: {error}") from error


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        _require_columns(path, names)
        return pq.read_table(path, columns=list(MANIFEST_COLUMNS)).to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def _require_columns(path: Path, names: Iterable[str]) -> None:
    missing = [column for column in MANIFEST_COLUMNS if column not in set(names)]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; expected {', '.join(MANIFEST_COLUMNS)}")
