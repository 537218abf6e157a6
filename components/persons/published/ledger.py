"""Keys that were met, and what was noted of each, for sets too large for a dictionary.

Kept by SQLite in a temporary database of its own, which stays in a small cache until it grows and then goes to disk (the folder
that TMPDIR names); it is gone with the object. Some 10 microseconds a call, whatever the number of keys.
"""

import sqlite3
from collections.abc import Iterator


class Ledger:
    """Key -> note; the first note of a key stays."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE notes (key BLOB PRIMARY KEY, note) WITHOUT ROWID")
        self._database.execute(
            "CREATE TABLE votes (voter INTEGER, choice TEXT, n INTEGER, PRIMARY KEY (voter, choice)) WITHOUT ROWID"
        )
        self._size = 0

    def __len__(self) -> int:
        """Keys."""
        return self._size

    def find(self, key: bytes) -> str | None:
        """The note of a key that was met, else None."""
        found = self._database.execute("SELECT note FROM notes WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def note(self, key: bytes, note: str) -> None:
        """Keep `note` for a key, unless it has one."""
        done = self._database.execute("INSERT OR IGNORE INTO notes VALUES (?, ?)", (key, note))
        self._size += max(0, done.rowcount)

    def number(self, key: str) -> int:
        """0, 1, 2, ... for the keys in the order in which they were first asked for."""
        encoded = key.encode("utf-8", "surrogatepass")
        self.note(encoded, str(self._size))
        return int(self.find(encoded) or 0)

    def vote(self, voter: int, choice: str) -> None:
        """Count one more `choice` of a voter."""
        self._database.execute(
            "INSERT INTO votes VALUES (?, ?, 1) ON CONFLICT (voter, choice) DO UPDATE SET n = n + 1", (voter, choice)
        )

    def voters(self) -> dict[str, int]:
        """Choice -> how many voters made it."""
        return dict(self._database.execute("SELECT choice, count(*) FROM votes GROUP BY choice"))

    def divided(self) -> Iterator[tuple[int, str, int]]:
        """(voter, choice, votes) of every voter with more than one choice."""
        yield from self._database.execute(
            "SELECT voter, choice, n FROM votes WHERE voter IN (SELECT voter FROM votes GROUP BY voter HAVING count(*) > 1)"
        )
