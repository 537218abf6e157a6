"""Reads the manifest of a gallery's pictures: CSV, JSON lines or Parquet, with a column `file`, relative to the manifest.

`identity` and `caption` are optional; `image_path` is read as `file`, as in a data set's manifest. Other columns are kept as whole
numbers, numbers, truth values or text; times, and whole numbers of more than 64 bits with their sign, become text. A row without a
file is left out.
"""

import csv
import io
import json
import re
from collections.abc import Callable
from decimal import Decimal
from math import isfinite
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.errors import DataError
from components.search.gallery import layout
from components.text_files import cells_fault, csv_rows, split_lines

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
OWN = ("file", "identity", "caption")
RESERVED = frozenset(layout.SCHEMA.names) - set(OWN) | {"rank", "row", "score"}
"""Names that a column of the source cannot have in a gallery, nor in an answer: it becomes `source_<name>`."""


def read_manifest(content: bytes, suffix: str, name: str, left_out: list[tuple[str, str]]) -> pa.Table:
    """Return the columns file, identity and caption (strings), then the others. `name` is for messages.

    Raises DataError where the manifest cannot be read, or has no column `file`.
    """
    readers: dict[str, Callable[[bytes], pa.Table]] = {".jsonl": _json_lines, ".parquet": _parquet}
    if suffix not in MANIFEST_SUFFIXES:
        raise DataError(f"{name}: is no manifest; use {', '.join(MANIFEST_SUFFIXES)}")
    try:
        table = readers.get(suffix, _csv)(content)
    except (csv.Error, pa.ArrowException, ValueError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name}: is not a readable {suffix} manifest ({reason[:200]})") from error
    paths = "file" if "file" in table.column_names else "image_path"
    found = ["file" if each == paths else f"source_{each}" if each in RESERVED else each for each in table.column_names]
    if len(set(found)) < len(found):
        twice = next(each for each in found if found.count(each) > 1)
        raise DataError(f"{name}: has two columns {twice!r}; rename one")
    table = table.rename_columns(found)
    if "file" not in found:
        raise DataError(
            f"{name}: has no column `file` (paths relative to the manifest); it has {', '.join(found) or 'none'}"
        )
    columns = {each: _texts(table[each]) if each in found else pa.nulls(table.num_rows, pa.string()) for each in OWN}
    for each in found:
        kept = _plain(table[each])
        if each not in OWN and kept is not None:
            columns[each] = kept
    return _with_files(pa.table(columns), left_out)


def _with_files(table: pa.Table, left_out: list[tuple[str, str]]) -> pa.Table:
    files = [_normal(file) for file in table["file"].to_pylist()]
    left_out += [(f"row {row}", "names no file") for row, file in enumerate(files, 1) if not file]
    table = table.set_column(0, "file", pa.array(files, pa.string()))
    return table.filter(pc.not_equal(pc.fill_null(table["file"], ""), ""))


def _normal(file: str | None) -> str | None:
    """One spelling of a path: "./a.jpg" and "a.jpg" are the same file."""
    return str(PurePosixPath(file)) if file and file.strip() else None


def _csv(content: bytes) -> pa.Table:
    """The rows, as `csv_rows` reads them, in columns of the types that Arrow infers."""
    from pyarrow.csv import ConvertOptions, ParseOptions, read_csv

    text = content.decode("utf-8-sig")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv_rows(io.StringIO(text, newline=""), delimiter)
    _, names = next(rows, (0, []))
    texts = {"image_path", *OWN}
    plain = io.StringIO()
    writer = csv.writer(plain)
    writer.writerow(names)
    for line, cells in rows:
        if not any(cells):
            continue
        if fault := cells_fault(cells, len(names), delimiter):
            raise csv.Error(f"line {line} {fault}")
        writer.writerow(cells[: len(names)])
        # Arrow would make floats of these, which are equal for neighbouring numbers.
        texts.update(name for name, cell in zip(names, cells, strict=False) if len(cell) > 18 and _is_too_large(cell))
    return read_csv(
        io.BytesIO(plain.getvalue().encode()),
        parse_options=ParseOptions(newlines_in_values=True),
        convert_options=ConvertOptions(
            column_types=dict.fromkeys(texts, pa.string()),
            strings_can_be_null=True,
            null_values=["", "null", "NaN", "nan"],
        ),
    )


def _is_too_large(cell: str) -> bool:
    """Whether a cell is a whole number that is none of 64 bits with a sign."""
    return re.fullmatch(r"[+-]?\d{1,400}", cell, re.ASCII) is not None and not -(2**63) <= int(cell) < 2**63


def _json_lines(content: bytes) -> pa.Table:
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for number, line in enumerate(split_lines(content.decode("utf-8-sig")), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: is not an object with named values")
        rows.append(row)
        names |= dict.fromkeys(row)
    return pa.table({name: _json_column([row.get(name) for row in rows]) for name in names})


def _json_column(values: list[Any]) -> pa.Array:
    """Of one type where the values are; else as text."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1 or kinds == {int, float}:
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError):
            pass
    return pa.array([_text(value) for value in values], pa.string())


def _parquet(content: bytes) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(content))


def _texts(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([_text(value) for value in column.to_pylist()], pa.string())


def _text(value: Any) -> str | None:
    """A value as text: 7 and 7.0 as "7", a missing one (null, NaN) and an empty text as None, a list joined by lines."""
    if value is None or (isinstance(value, float | Decimal) and value != value):
        return None
    if isinstance(value, float | Decimal) and isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, list | tuple):
        return "\n".join(filter(None, map(_text, value))) or None
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True, default=str)
    return str(value).strip() or None


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array | None:
    """A column in one of the types that filters and answers know; None for nested and binary ones, which are not kept."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return None
    if pa.types.is_boolean(kind):
        return column
    if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale <= 0):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            return column.cast(pa.string())
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(numbers), None, numbers)  # pandas writes what is not known as NaN
    return column.cast(pa.string())
