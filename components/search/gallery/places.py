"""Reads the pictures of a source by the names that a gallery records, from a folder or a bucket, and nothing outside of it.

A name is a path relative to the source; of a picture in a Parquet shard, the path of the shard and the row, as in
`components.persons.pictures`.
"""

import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from components.errors import DataError, ParameterError
from components.persons.pictures import PictureReader, split_address
from components.persons.published.locations import PictureFolder

MAX_BYTES = 256 << 20
"""Of a picture's file; a larger one is not read into memory."""
OUTSIDE = "leaves the source"
_REFUSED = (
    "NO_SUCH_BUCKET",
    "NO_SUCH_KEY",
    "NOT_FOUND",
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY",
    "SIGNATURE",
    "FORBIDDEN",
)
"""In the messages of a bucket's errors that the same command would meet again."""


class Place(Protocol):
    """Where the pictures of a source are."""

    def read(self, name: str) -> bytes:
        """Return the bytes of a picture; any thread may call it. Raises DataError for one that cannot be read, in one line.

        Raises ConnectionError or another OSError where the storage as a whole does not answer.
        """
        ...


def is_address(location: str) -> bool:
    """Return whether a source is given by an address such as s3://bucket/folder, and not by a path."""
    return "://" in location


def open_place(source: Mapping[str, Any]) -> Place:
    """Return the place of the source that a gallery records: {"kind", "base", ...}."""
    base = str(source["base"])
    return Bucket(base) if is_address(base) else Folder(Path(base))


class Folder:
    """The files below a folder of this machine. Links may stay inside of it, not lead out."""

    def __init__(self, base: Path) -> None:
        self.base = Path(os.path.realpath(base))
        self._spellings = PictureFolder(self.base)
        self._shards = PictureReader()
        self._lock = threading.Lock()  # of the shards

    def read(self, name: str) -> bytes:
        file, row = split_address(name)
        path = self.find(file)
        if row is not None:
            with self._lock:
                return self._shards.read(f"{path}#{row}")
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}") from error

    def find(self, file: str) -> Path:
        """Return the real path of a file. Raises DataError unless it is a regular one, inside, and not too large."""
        if PurePosixPath(file).is_absolute():
            path = Path(file)  # a manifest may name its own folder in full
        else:
            path = self.base / file
            if ".." in PurePosixPath(file).parts or "\0" in file or not os.path.lexists(path):
                path = Path(self._spellings.address(file))
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(self.base):
            raise DataError(f"{OUTSIDE}: {'a link' if path.is_symlink() else 'its path'} leads out of {self.base}")
        try:
            facts = real.stat()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(facts.st_mode):
            raise DataError("is no regular file")
        if facts.st_size > MAX_BYTES and split_address(file)[1] is None and real.suffix != ".parquet":
            raise DataError(f"has {facts.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        return real


class Bucket:
    """The objects below an address that pyarrow's filesystems open: s3://, gs://, hdfs:// and others."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.files, self.base = open_address(address)

    def read(self, name: str) -> bytes:
        if not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise DataError(f"{OUTSIDE}: the path is absolute or contains '..'")
        try:
            with self.files.open_input_file(f"{self.base}/{name}") as file:
                if file.size() > MAX_BYTES:
                    raise DataError(f"has {file.size():,} bytes; at most {MAX_BYTES:,} are read")
                return bytes(file.read())
        except FileNotFoundError:
            raise DataError("no such object") from None
        except OSError as error:
            raise explained(self.address, error) from error


def open_address(address: str) -> tuple[Any, str]:
    """Return pyarrow's filesystem and the path in it. Raises ParameterError for an address that cannot be opened."""
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    authority = address.partition("://")[2].partition("/")[0]
    if "@" in authority:
        raise ParameterError(
            "the address of the source holds credentials, which would be stored with the gallery: give them by the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    try:
        files, path = FileSystem.from_uri(address)
    except (pa.ArrowException, ValueError) as error:
        raise ParameterError(f"{address}: is no address that can be opened ({_line(error)})") from error
    except OSError as error:
        raise explained(address, error) from error
    return files, path.rstrip("/")


def explained(address: str, error: OSError) -> Exception:
    """Return what an error of a bucket means: DataError where the address or the rights are wrong, else ConnectionError."""
    text = _line(error)
    if isinstance(error, FileNotFoundError) or any(word in text.upper() for word in _REFUSED):
        return DataError(f"{address}: cannot be read ({text}): check the address and the rights")
    return ConnectionError(f"{address}: does not answer ({text}): run again when it does")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
