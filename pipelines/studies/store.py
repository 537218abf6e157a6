"""Results of cells in the scratch root: one JSON file each, named by its fingerprint and written atomically.

<home>/studies/<name>/
    lock                 held by the process that measures
    <fingerprint>.json   the result, its cost, and the digests of the files kept with it; written last
    <fingerprint>/       files/ (kept), and checkpoints while it is being measured
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.files import write_atomically
from pipelines.identity.fingerprint import tree_digests
from pipelines.locks.file_lock import file_lock
from pipelines.studies.cells import Cell, Result

DIGITS = 16
"""Digits of a fingerprint in file names."""


@dataclass(frozen=True)
class ResultStore:
    """The results of one study."""

    root: Path

    def folder(self, identity: str) -> Path:
        """Return the scratch folder of a cell."""
        return self.root / identity[:DIGITS]

    def files(self, identity: str) -> Path:
        """Return the folder of files kept with a cell's result."""
        return self.folder(identity) / "files"

    def read(self, identity: str) -> Result | None:
        """Return the result, if it exists and the files kept with it are unchanged. Raises OSError when that cannot be read."""
        try:
            record = json.loads(self._record(identity).read_text(encoding="utf-8"))
            whole = record["fingerprint"] == identity and record["files"] == tree_digests(self.files(identity))
            return record["result"] if whole else None
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def seconds(self, identity: str) -> float | None:
        """Return the processor seconds that a result took; None without a result that says."""
        try:
            found = json.loads(self._record(identity).read_text(encoding="utf-8"))["processor_seconds"]
            return None if found is None else float(found)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, cell: Cell, identity: str, result: Result, seconds: float | None = None) -> None:
        """Keep a result and the processor seconds that it took. Raises ValueError for one without a JSON form (NaN, infinity)."""
        record: dict[str, Any] = {
            "key": cell.key,
            "settings": dict(cell.settings),
            "fingerprint": identity,
            "result": dict(result),
            "processor_seconds": None if seconds is None else round(seconds, 2),
            "files": tree_digests(self.files(identity)),
        }
        write_atomically(self._record(identity), json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")
        shutil.rmtree(self.folder(identity) / "checkpoints", ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the study. Raises InfrastructureError when another process has locked it: it measures the same cells."""
        refusal = f"{self.root}: another process measures this study; run again when it has ended"
        with file_lock(self.root / "lock", refusal):
            yield

    def _record(self, identity: str) -> Path:
        return self.root / f"{identity[:DIGITS]}.json"
