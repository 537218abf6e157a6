"""Pictures that an annotation file lists more than once, each time with captions of its own."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from components.persons.records import Record, RecordSource


class Repetitions:
    """Joins the captions of records that list the same path, identity and split, into the first of them.

    Add every record, in order, before the first is joined. Held in a temporary SQLite database, which spills to disk: a file may
    list millions of pictures once per caption.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE firsts (key BLOB PRIMARY KEY, record INTEGER) WITHOUT ROWID")
        self._database.execute("CREATE TABLE later (record INTEGER PRIMARY KEY, first INTEGER, captions TEXT)")
        self._count = 0

    def add(self, index: int, record: Record) -> None:
        """Add the record with number `index`."""
        path = PurePosixPath(record.image_path.replace("\\", "/"))
        key = f"{record.split} {record.identity} {path}".encode("utf-8", "surrogatepass")
        if self._database.execute("INSERT OR IGNORE INTO firsts VALUES (?, ?)", (key, index)).rowcount:
            return
        if not self._count:
            self._database.execute("CREATE INDEX by_first ON later (first)")
        (first,) = self._database.execute("SELECT record FROM firsts WHERE key = ?", (key,)).fetchone()
        captions = json.dumps([record.captions, _wrong_words(record)])
        self._database.execute("INSERT INTO later VALUES (?, ?, ?)", (index, first, captions))
        self._count += 1

    def joined(self, index: int, record: Record) -> Record | None:
        """Return the record with the captions of its repetitions; None where it is one itself."""
        if not self._count:
            return record
        if self._database.execute("SELECT 1 FROM later WHERE record = ?", (index,)).fetchone():
            return None
        captions, wrong_words = list(record.captions), list(_wrong_words(record))
        more = self._database.execute("SELECT captions FROM later WHERE first = ? ORDER BY record", (index,))
        for (written,) in more.fetchall():
            further, wrong = json.loads(written)
            captions += further
            wrong_words += map(tuple, wrong)
        return replace(record, captions=tuple(captions), wrong_words=tuple(wrong_words) if any(wrong_words) else ())


def joined_records(dataset: RecordSource) -> Iterator[Record]:
    """Yield the records of a dataset, which is read twice, each with the captions of its repetitions."""
    repetitions = Repetitions()
    for index, record in enumerate(dataset):
        repetitions.add(index, record)
    for index, record in enumerate(dataset):
        whole = repetitions.joined(index, record)
        if whole is not None:
            yield whole


def _wrong_words(record: Record) -> tuple[tuple[int, ...], ...]:
    return record.wrong_words or ((),) * len(record.captions)
