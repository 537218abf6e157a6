"""The output folder of a curation, and the state from which a killed run is resumed.

working/settings.json      the options that the result depends on
working/candidates.jsonl   one line per judged picture, written at once: captions by a large model are expensive
manifest.parquet, shards/  the training set, written when all are judged
validation.json            of each split, the pictures and captions that the source lists, and those of them that are kept
decisions.parquet          every candidate with its reason; written last, when `working` is removed
"""

import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import DataError, ParameterError
from components.files import write_atomically
from components.persons.curation.candidates import Candidate
from components.persons.published.validation_report import VALIDATION_FILE
from components.persons.shards import DATASET_MANIFEST
from pipelines.locks.file_lock import file_lock

DECISIONS = "decisions.parquet"
_SCHEMA = pa.schema(
    [
        ("address", pa.string()),
        ("box", pa.list_(pa.int32())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("match", pa.float64()),
        ("reason", pa.string()),
        ("image_id", pa.int64()),
    ]
)


class CurationFolder:
    """The output folder at `path`. All methods but `claim` are for the process that holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._working = path / "working"
        self._lines = self._working / "candidates.jsonl"

    @contextmanager
    def claim(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Lock the folder, which is new, empty, or left by a killed run with the same settings.

        Raises ParameterError when it has other content, InfrastructureError when another run has locked it.
        """
        if self.path.exists() and not self._working.is_dir() and any(self.path.iterdir()):
            raise ParameterError(f"{self.path} is not empty: choose another --output")
        refusal = f"{self.path}: another run writes there: wait for it, or choose another --output"
        with file_lock(self._working / "lock", refusal):
            stored = self._working / "settings.json"
            known = json.loads(stored.read_text()) if stored.is_file() else None
            if known is not None and known != dict(settings):
                changed = sorted(key for key in {*known, *settings} if known.get(key) != settings.get(key))
                raise ParameterError(
                    f"{self.path} was started with other {', '.join(changed)}: choose another --output, or remove it"
                )
            write_atomically(stored, json.dumps(dict(settings), indent=1, sort_keys=True) + "\n")
            self._remove_unfinished_output()
            yield

    def _remove_unfinished_output(self) -> None:
        """Remove what is written after judging, which is written again, and a line that was cut off by a kill."""
        shutil.rmtree(self.path / "shards", ignore_errors=True)
        for name in (DATASET_MANIFEST, VALIDATION_FILE, DECISIONS, f".{DATASET_MANIFEST}.unfinished"):
            (self.path / name).unlink(missing_ok=True)
        if self._lines.is_file():
            with open(self._lines, "rb+") as file:
                whole = sum(len(line) for line in file if line.endswith(b"\n"))
                file.truncate(whole)

    def judged(self) -> int:
        """Return the number of judged pictures."""
        if not self._lines.is_file():
            return 0
        with open(self._lines, "rb") as file:
            return sum(1 for _ in file)

    def candidates(self) -> Iterator[Candidate]:
        """Yield every candidate so far, picture by picture."""
        if not self._lines.is_file():
            return
        with open(self._lines, encoding="utf-8") as file:
            for line in file:
                for entry in json.loads(line)["candidates"]:
                    box = None if entry["box"] is None else tuple(entry["box"])
                    yield Candidate(**{**entry, "box": box, "captions": tuple(entry["captions"])})

    def addresses(self) -> Iterator[str]:
        """Yield the addresses of the judged pictures, in order."""
        if self._lines.is_file():
            with open(self._lines, encoding="utf-8") as file:
                yield from (json.loads(line)["address"] for line in file)

    def record(self, addresses: Sequence[str], judged: Sequence[Sequence[Candidate]]) -> None:
        """Append the candidates of some pictures."""
        with open(self._lines, "a", encoding="utf-8") as file:
            for address, candidates in zip(addresses, judged, strict=True):
                entry = {"address": address, "candidates": [asdict(candidate) for candidate in candidates]}
                file.write(json.dumps(entry) + "\n")

    def conclude(self, reasons: Sequence[str], image_ids: Sequence[int | None]) -> None:
        """Write the decisions, and remove the state for resuming."""
        rows = (
            {**asdict(candidate), "address": _in_utf8(candidate.address), "reason": reason, "image_id": image_id}
            for candidate, reason, image_id in zip(self.candidates(), reasons, image_ids, strict=True)
        )
        with pq.ParquetWriter(self.path / DECISIONS, _SCHEMA, compression="zstd") as writer:
            while part := list(itertools.islice(rows, 65536)):
                columns = {name: [row[name] for row in part] for name in _SCHEMA.names}
                writer.write_table(pa.table(columns, schema=_SCHEMA))
        shutil.rmtree(self._working)


def _in_utf8(address: str) -> str:
    """An address as Parquet can store it: a name of another encoding shows "?" for its bytes."""
    return address.encode("utf-8", "replace").decode()


def require_same(expected: str, found: str, folder: Path) -> None:
    """Raise DataError unless the next picture is the one that the killed run judged."""
    if expected != found:
        raise DataError(
            f"{folder}: the pictures changed since the run was started ({expected} then, {found} now): choose another --output"
        )
