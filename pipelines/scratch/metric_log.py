"""Metrics over steps, written to disk first.

A training process appends lines to `metrics.jsonl`; the runner reads them and delivers them to the tracking server. So training
never waits for a server, nothing is lost when it is away, and a resumed run can drop what it reported after its checkpoint.
"""

import csv
import io
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.files import write_atomically


class MetricFollower:
    """Reads what a process has appended to a log since the last time, and all of a log that was replaced since."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = -1, 0

    def read(self) -> list[dict[str, Any]]:
        """Return the complete lines that are new."""
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            state = os.fstat(file.fileno())
            if state.st_ino != self._inode or state.st_size < self._offset:
                self._inode, self._offset = state.st_ino, 0
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        lines = whole.decode("utf-8", "replace").split("\n") if newline else []
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


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except ValueError:
        return None
