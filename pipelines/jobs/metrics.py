"""The metrics of a job while it runs: written by its rank 0, followed by whoever waits for it.

In a shared folder the job appends to `runs/<key>/metrics.jsonl`, which is read from where it was read last. Nothing can be appended
to an object of a bucket. There the log is kept in parts, of which only the last one grows:

    runs/<key>/metrics/log.json         {"name", "bytes"}: the log that counts, and its length
    runs/<key>/metrics/<name>/000000    its parts of PART_BYTES

A run that resumes drops what it reported after its checkpoint: its log begins again, under another name, so that nobody mixes two.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from components.files import write_atomically
from pipelines.jobs.task import METRICS, run_folder
from pipelines.scratch.metric_log import LogFollower, bytes_from
from pipelines.scratch.storage import Storage

PART_BYTES = 1 << 16


@dataclass(frozen=True)
class SentLog:
    """The log that counts in a bucket."""

    name: str
    bytes: int


class MetricsCopy:
    """Keeps `file` equal to the log of the job with this key."""

    def __init__(self, storage: Storage, key: str, file: Path) -> None:
        self._file = file
        self._log = LogFollower(lambda start: sent_metrics(storage, key, start), known=bytes_from(file, 0))

    def update(self) -> None:
        """Append what is new, or write all of a log that was replaced."""
        replaced, lines = self._log.new()
        if replaced:
            write_atomically(self._file, lines.decode())
        elif lines:
            with open(self._file, "ab") as file:
                file.write(lines)


class MetricsSender:
    """Sends the log `file` to a bucket, under names that begin with `writer`.

    require_writer: raises an error when another process has become the run's writer.
    """

    def __init__(self, storage: Storage, key: str, file: Path, writer: str, require_writer: Callable[[], None]) -> None:
        self._storage = storage
        self._folder = _folder(key)
        self._names = (f"{writer}-{number}" for number in count(1))
        self._require_writer = require_writer
        self._log = LogFollower(lambda start: bytes_from(file, start))
        self._start, self._text = 0, b""  # where the first part begins that can still change, and the log from there on
        self._present = self._sent = SentLog(next(self._names), 0)

    def send(self) -> None:
        """Send what is new. Raises InfrastructureError when the bucket stays away; the next call sends it again."""
        replaced, lines = self._log.new()
        if replaced:
            self._present, self._start, self._text = SentLog(next(self._names), 0), 0, b""
        self._text += lines
        self._present = SentLog(self._present.name, self._start + len(self._text))
        if self._present == self._sent:
            return
        self._require_writer()
        for begin in range(0, len(self._text), PART_BYTES):
            part = self._text[begin : begin + PART_BYTES]
            self._storage.write(_part(self._folder, self._present.name, self._start + begin), part)
        self._storage.write(f"{self._folder}/log.json", json.dumps(asdict(self._present)))
        before, self._sent = self._sent, self._present
        whole = len(self._text) // PART_BYTES * PART_BYTES
        self._start, self._text = self._start + whole, self._text[whole:]
        if before.name != self._present.name and before.bytes:
            self._storage.delete(f"{self._folder}/{before.name}")


def sent_metrics(storage: Storage, key: str, start: int = 0) -> bytes:
    """Return the log of a job in a storage, from byte `start` on; b"" without one."""
    if storage.folder:
        return storage.read_bytes(f"{run_folder(key)}/{METRICS}", start) or b""
    found = storage.read_json(f"{_folder(key)}/log.json")
    if not isinstance(found, dict):  # of older code
        return (storage.read_bytes(f"{run_folder(key)}/{METRICS}") or b"")[start:]
    log, text = SentLog(**found), b""
    first = start // PART_BYTES * PART_BYTES
    for begin in range(first, log.bytes, PART_BYTES):
        text += storage.read_bytes(_part(_folder(key), log.name, begin)) or b""
    return text[start - first : log.bytes - first]


def _folder(key: str) -> str:
    return f"{run_folder(key)}/metrics"


def _part(folder: str, name: str, begin: int) -> str:
    return f"{folder}/{name}/{begin // PART_BYTES:06d}"
