"""Read a dataset from a table of images and captions: a CSV or Parquet file with one row per caption.

image_path, caption, identity, split     paths relative to the table's folder; other columns are ignored

A CSV file is in UTF-8, its columns separated by commas, semicolons or tabs. The rows of a picture need not be neighbours, and there
may be millions: SQLite sorts them in a temporary database, which spills to disk when it grows.
"""

import csv
import itertools
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.persons.published.fields import identity_number, split_name, text
from components.persons.published.ledger import Ledger
from components.persons.records import Record
from components.text_files import cells_fault, csv_rows

TABLES = (".csv", ".tsv", ".parquet")
"""Suffixes of tables."""
MANIFEST_COLUMNS = ("image_path", "caption", "identity", "split")
Row = tuple[str, str, int, str]
"""In the order of MANIFEST_COLUMNS."""


def read_manifest(path: Path) -> Iterator[Record]:
    """Yield one record per picture of a manifest, in the order of first mention.

    Rows of one picture must agree in identity and split. Raises DataError.
    """
    cells = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    database = sqlite3.connect("")
    database.execute("CREATE TABLE manifest (picture INTEGER, image_path, caption, identity INTEGER, split)")
    pictures = Ledger()
    rows = (_row(values, where) for where, values in cells if any(value not in (None, "") for value in values))
    numbered = ((pictures.number(row[0]), *row) for row in rows)
    database.executemany("INSERT INTO manifest VALUES (?, ?, ?, ?, ?)", numbered)
    if not len(pictures):
        raise DataError(f"{path} has no rows")
    in_order = database.execute("SELECT image_path, caption, identity, split FROM manifest ORDER BY picture, rowid")
    for image_path, group in itertools.groupby(in_order, key=lambda row: row[0]):
        yield _record(path, image_path, list(group))


def _row(values: Sequence[Any], where: str) -> Row:
    image_path, caption, identity, split = values
    if not isinstance(image_path, str) or not image_path:
        raise DataError(f"{where}: image_path is {image_path!r}; give the path of a picture")
    try:
        return image_path, text(caption), identity_number(identity), split_name(split)
    except ValueError as error:
        raise DataError(f"{where}, {image_path}: {error}") from None


def _record(path: Path, image_path: str, group: Sequence[Row]) -> Record:
    if len({(identity, split) for _, _, identity, split in group}) > 1:
        raise DataError(f"{path}: {image_path} has rows of different identity or split; give each picture one")
    _, _, identity, split = group[0]
    return Record(image_path, identity, tuple(caption for _, caption, _, _ in group), split, path.stem)


def _csv(path: Path) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the four cells of each row, with the place of the row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            head = file.readline()
            delimiter = next((mark for mark in ",;\t" if set(MANIFEST_COLUMNS) <= set(_split(head, mark))), ",")
            names = _split(head, delimiter)
            _require_columns(path, names)
            places = [names.index(column) for column in MANIFEST_COLUMNS]
            for line, row in itertools.islice(csv_rows(itertools.chain([head], file), delimiter), 1, None):
                if not any(row):
                    continue
                if fault := cells_fault(row, len(names), delimiter):
                    raise DataError(f"{path} line {line} {fault}")
                yield f"{path} line {line}", [row[place] for place in places]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}): save it in that encoding") from error
    except csv.Error as error:
        raise DataError(f"{path} {error}") from error


def _split(line: str, delimiter: str) -> list[str]:
    return [name.strip() for row in csv.reader([line], delimiter=delimiter, skipinitialspace=True) for name in row]


def _parquet(path: Path) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the four values of each row, with the place of the row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        _require_columns(path, file.schema_arrow.names)
        number = itertools.count()
        for batch in file.iter_batches(columns=list(MANIFEST_COLUMNS)):
            columns = [batch[name].to_pylist() for name in MANIFEST_COLUMNS]
            for values in zip(*columns, strict=True):
                yield f"{path} row {next(number)}", values
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def _require_columns(path: Path, names: Sequence[str]) -> None:
    if twice := [column for column in MANIFEST_COLUMNS if names.count(column) > 1]:
        raise DataError(f"{path} has two columns {twice[0]!r}; rename one, or write a row per caption")
    missing = [column for column in MANIFEST_COLUMNS if column not in names]
    if missing:
        raise DataError(
            f"{path} lacks the columns {', '.join(missing)}; expected {', '.join(MANIFEST_COLUMNS)}, it has "
            f"{', '.join(names) or 'nothing'}"
        )
