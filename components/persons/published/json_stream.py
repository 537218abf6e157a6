"""Iterate over the elements of a JSON list: annotation files of five million pictures have gigabytes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.errors import DataError

_CHUNK = 1 << 20
_SPACE = " \t\n\r"
_AFTER = tuple(_SPACE + ",]}")  # what may follow an element


def list_elements(path: Path, *, chunk: int = _CHUNK) -> Iterator[Any]:
    """Yield each element of the list in a file, with `chunk` characters and one element in memory.

    Raises DataError while iterating, where the file is not a list or is malformed.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _Elements(file, chunk)
    except _NotAListError:
        raise DataError(
            f"{path} must hold a non-empty list of records, [...]: no JSON lines, no object around the list"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}): save it in that encoding") from error
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON: {error}") from error


class _NotAListError(Exception):
    """The file is JSON, but not a list."""


class _Elements:
    """Reads ahead in a buffer until the decoder finds a whole element in it."""

    def __init__(self, file: Any, chunk: int) -> None:
        self._file, self._chunk = file, chunk
        self._buffer, self._place, self._read = "", 0, 0  # characters of the file before the buffer
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode

    def __iter__(self) -> Iterator[Any]:
        if self._peek() != "[":
            self._element()  # raises where it is not JSON either
            raise _NotAListError
        self._place += 1
        if self._peek() == "]":
            self._place += 1
        else:
            while True:
                yield self._element()
                mark = self._peek()
                self._place += 1
                if mark == "]":
                    break
                if mark != ",":
                    raise ValueError(
                        f"expected a comma or the end of the list at character {self._read + self._place - 1}"
                    )
        if self._peek():
            raise ValueError(f"text after the end of the list, at character {self._read + self._place}")

    def _peek(self) -> str:
        """Skip whitespace and return the next character without consuming it; empty at the end of the file."""
        while True:
            while self._place < len(self._buffer):
                if self._buffer[self._place] not in _SPACE:
                    return self._buffer[self._place]
                self._place += 1
            if not self._more():
                return ""

    def _element(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decode(self._buffer, self._place)
            except json.JSONDecodeError as error:
                if self._more():
                    continue
                raise ValueError(f"{error.msg}, character {self._read + error.pos}") from None
            # A number may continue behind the buffer: "1", "1." and "1.5e" of 1.5e-7 decode as 1, 1 and 1.5.
            if self._buffer[end : end + 1] in _AFTER or not self._more():
                self._place = end
                return value

    def _more(self) -> bool:
        """Read the next chunk and drop what is consumed. Chunks grow with a long element, so that it is not parsed too often."""
        if self._ended:
            return False
        rest = self._buffer[self._place :]
        text = self._file.read(max(self._chunk, len(rest)))
        self._read += self._place
        self._buffer, self._place = rest + text, 0
        self._ended = not text
        return bool(text)
