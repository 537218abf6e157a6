"""Lines and CSV rows of text files that people write."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file in UTF-8, with or without a byte order mark. Raises OSError, UnicodeDecodeError."""
    return split_lines(path.read_bytes().decode("utf-8-sig"))


def split_lines(text: str) -> list[str]:
    r"""Return the lines of a text, without the "\n" or "\r\n" at their ends.

    `str.splitlines` also cuts at characters that a sentence or a JSON string may hold, such as U+2028.
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def csv_rows(lines: Iterable[str], delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row that is not blank, with the number of its first line, from 1 on.

    Raises csv.Error, which names the line, where a quoted cell does not end, or goes on behind its closing quote: one quote too
    many would make the rows up to the next one a single cell.
    """
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    end = 0
    try:
        for cells in reader:
            if cells:
                yield end + 1, cells
            end = reader.line_num
    except csv.Error as error:
        raise csv.Error(
            f"line {end + 1} is not CSV ({error}): a cell that begins with a quote must end with one, and a quote in it is doubled"
        ) from None


def cells_fault(cells: list[str], columns: int, delimiter: str) -> str | None:
    """Return what is wrong with the number of cells of a row, None for nothing; empty cells behind the last column may be there."""
    if len(cells) < columns or any(cells[columns:]):
        return f"has {len(cells)} cells, the first line {columns}; a cell that holds {delimiter!r} needs quotes"
    return None
