"""Read encoded pictures by address, from a file or from a row of a Parquet shard.

An address is a path; inside a shard it is the path of the shard and the row: `data/train-00000-of-00012.parquet#7`.
"""

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError

IMAGE_COLUMN = "image"
"""The column of a shard that holds pictures: bytes, or as on the Hugging Face hub a struct of `bytes` and `path`."""


def shard_address(shard: str, row: int) -> str:
    """Return the address of the picture in row `row` of a Parquet file."""
    return f"{shard}#{row}"


def split_address(address: str) -> tuple[str, int | None]:
    """Return the file and the row of an address; the row is None where the file is the picture."""
    file, _, row = address.rpartition("#")
    return (file, int(row)) if file.endswith(".parquet") and row.isdecimal() else (address, None)


class PictureReader:
    """Reads encoded pictures by address. The last row group is kept, so that reading in order is fast."""

    def __init__(self) -> None:
        self._shard: str | None = None
        self._file: Any = None  # a pyarrow.parquet.ParquetFile
        self._ends: list[int] = []  # rows up to the end of each row group
        self._group: tuple[int, Sequence[Any]] = (-1, ())

    def read(self, address: str) -> bytes:
        """Return the encoded picture. Raises OSError for a missing file, DataError for a row without a picture."""
        file, row = split_address(address)
        return Path(file).read_bytes() if row is None else self._read_row(file, row)

    def _read_row(self, shard: str, row: int) -> bytes:
        import pyarrow as pa

        try:
            self._open(shard)
            if row >= self._ends[-1]:
                raise DataError(f"{shard} has {self._ends[-1]} rows; there is no row {row}")
            number = bisect.bisect_right(self._ends, row)
            if self._group[0] != number:
                self._group = (number, self._file.read_row_group(number, columns=[IMAGE_COLUMN])[IMAGE_COLUMN])
        except (pa.ArrowException, KeyError) as error:
            raise DataError(f"{shard} is not a readable shard of pictures: {error}") from error
        place = row - (self._ends[number - 1] if number else 0)
        found = self._group[1][place].as_py()
        content = found.get("bytes") if isinstance(found, dict) else found
        if not isinstance(content, bytes):
            raise DataError(f"row {row} of {shard} holds no picture")
        return content

    def _open(self, shard: str) -> None:
        if self._shard == shard:
            return
        import pyarrow.parquet as pq

        file = pq.ParquetFile(shard)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        self._shard, self._file, self._ends, self._group = shard, file, [*itertools.accumulate(sizes)] or [0], (-1, ())
