"""Metrics over steps, written to disk first.

A training process appends lines to `metrics.jsonl`; the runner reads them and delivers them to the tracking server. So training
never waits for a server, nothing is lost when it is away, and a resumed run can drop what it reported after its checkpoint.
"""

import csv
import io
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from components.files import write_atomically


class LogFollower:
    """Reads whole lines that are new in a log, and all of a log that was replaced since.

    Every line holds a time, so a log in which the last line that was read is still at its place has the same lines before it.

    read_from: returns the log's bytes from an offset, b"" beyond its end or without a log.
    known: bytes that were read before, whole lines.
    """

    def __init__(self, read_from: Callable[[int], bytes], known: bytes = b"") -> None:
        self._read_from = read_from
        self._remember(0, known)

    def new(self) -> tuple[bool, bytes]:
        """Return whether the log was replaced, and its lines that are new: all of them where it was."""
        start = self.offset - len(self._last)
        text = self._read_from(start)
        replaced = not text.startswith(self._last)
        if replaced:
            start, text = 0, self._read_from(0)
        elif self._last:
            start, text = self.offset, text[len(self._last) :]
        whole = text[: text.rfind(b"\n") + 1]
        if whole or replaced:
            self._remember(start, whole)
        return replaced, whole

    def _remember(self, start: int, whole: bytes) -> None:
        self.offset = start + len(whole)
        self._last = whole[whole.rfind(b"\n", 0, -1) + 1 :]


class MetricFollower:
    """Reads what a process has appended to a log of metrics since the last time, and all of one that was replaced since."""

    def __init__(self, path: Path) -> None:
        self._log = LogFollower(lambda start: bytes_from(path, start))

    def read(self) -> list[dict[str, Any]]:
        """Return the complete lines that are new."""
        lines = self._log.new()[1].decode("utf-8", "replace").split("\n")
        return [parsed for line in lines if (parsed := _parse(line)) is not None]


class MetricLog:
    """The lines of one run: {"phase", "step", "time", "metrics"}. One process writes, any may read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        line = json.dumps({"phase": phase, "step": step, "time": time.time(), "metrics": dict(metrics)})
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return every complete line; one torn by a kill or a full disk is skipped."""
        return MetricFollower(self.path).read()

    def take_back(self, phase: str, after_step: int) -> None:
        """Drop what `phase` reported after `after_step`; it will be computed and reported again."""
        kept = [line for line in self.read() if line["phase"] != phase or line["step"] <= after_step]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def table(self) -> str:
        """Return a CSV with one row per step and one column per metric, empty where a step has none. Holds no times."""
        rows: dict[int, dict[str, float]] = {}
        for line in self.read():
            rows.setdefault(line["step"], {}).update(line["metrics"])
        columns = sorted({key for row in rows.values() for key in row})
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": step, **rows[step]} for step in sorted(rows))
        return text.getvalue()


def bytes_from(path: Path, start: int) -> bytes:
    """Return the content of a file from an offset, b"" without the file."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read()
    except FileNotFoundError:
        return b""


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except ValueError:
        return None
