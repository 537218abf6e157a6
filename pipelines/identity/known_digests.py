"""Digests of files that were read before, so that a large input is hashed once and not in the process of every stage.

A file counts as unchanged while its size, times and inode are the same. That is no check of a result: what must find a damaged file
reads it.
"""

import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from components.files import file_digest

FILE = "digests.db"
SETTLED_SECONDS = 2.0
"""A file written since then is read again: another write may fall on the same tick of the file system's clock."""
TABLE = "CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, state TEXT NOT NULL, sha256 TEXT NOT NULL)"


class KnownDigests:
    """SHA-256 of files by path and state, in a SQLite file in the scratch root. Where it cannot be used, files are read."""

    def __init__(self, home: Path) -> None:
        self.file = home / FILE

    def of(self, files: list[Path]) -> list[str]:
        """Return the digest of each file, read only where its state is not known."""
        states = [settled_state(file) for file in files]
        known = self._load(files)
        found, new = [], []
        for file, state in zip(files, states, strict=True):
            name = _name(file)
            digest = known.get((name, state)) if state else None
            if digest is None:
                digest = file_digest(file)
                if state and state == settled_state(file):
                    new.append((name, state, digest))
            found.append(digest)
        self._save(new)
        return found

    def _load(self, files: list[Path]) -> dict[tuple[str, str], str]:
        names = [_name(file) for file in files]
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"{self.file.absolute().as_uri()}?mode=ro", timeout=1, uri=True)) as database,
        ):
            rows: list[tuple[str, str, str]] = []
            for start in range(0, len(names), 500):  # SQLite takes some 1,000 values in a statement
                part = names[start : start + 500]
                places = ", ".join("?" * len(part))
                rows += database.execute(f"SELECT path, state, sha256 FROM digests WHERE path IN ({places})", part)
            return {(name, state): digest for name, state, digest in rows}
        return {}

    def _save(self, rows: list[tuple[str, str, str]]) -> None:
        if not rows or not self.file.parent.is_dir():
            return
        with suppress(sqlite3.Error), closing(sqlite3.connect(self.file, timeout=1)) as database, database:
            database.execute("PRAGMA synchronous = OFF")  # it can be lost; the files are read again
            database.execute(TABLE)
            database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)


def _name(file: Path) -> str:
    """Return the absolute path as text that SQLite takes: bytes that are not UTF-8 are escaped."""
    return os.fsencode(file.absolute()).decode("utf-8", "backslashreplace")


def settled_state(file: Path) -> str | None:
    """Return size, times and inode; None for a file that was written a moment ago."""
    known = os.stat(file)
    if time.time_ns() - max(known.st_mtime_ns, known.st_ctime_ns) < SETTLED_SECONDS * 1e9:
        return None
    return f"{known.st_size} {known.st_mtime_ns} {known.st_ctime_ns} {known.st_ino} {known.st_dev}"
