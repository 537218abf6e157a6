"""The outcome of a validation, and `validation.json`, which a prepared dataset keeps of it.

`curate` writes one as well, of its candidates, and lists what it drops in `decisions.parquet` instead of `bad`.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import DataError

VALIDATION_FILE = "validation.json"


@dataclass(frozen=True)
class SplitCounts:
    """{"pictures": ..., "captions": ...} of a split that the annotation files list, and that are kept."""

    listed: Mapping[str, int]
    kept: Mapping[str, int]

    @property
    def left_out(self) -> dict[str, int]:
        """The difference: zeros for a whole split."""
        return {what: self.listed[what] - self.kept[what] for what in ("pictures", "captions")}


@dataclass(frozen=True)
class ValidationReport:
    """The outcome of a validation.

    Attributes:
        total: records read.
        good: records kept.
        counts: reason -> bad records.
        bad: one entry per bad record: index, image_path, identity, reason, detail, and what is left out: "picture" or "caption".
        joined: why records are joined with earlier ones -> their number; nothing of these is left out.
        splits: split -> its counts.
    """

    total: int
    good: int
    counts: dict[str, int]
    bad: tuple[dict[str, Any], ...]
    joined: dict[str, int]
    splits: dict[str, SplitCounts]

    @property
    def left_out(self) -> dict[str, dict[str, int]]:
        """Split -> the pictures and captions that it lacks, for each split that is not whole."""
        return {name: counts.left_out for name, counts in self.splits.items() if any(counts.left_out.values())}

    def summary(self) -> list[str]:
        """Return lines on what is left out, why, and what it means for the test split; none for a clean dataset."""
        lines = []
        if self.bad:
            lines.append(f"left out of {self.total:,} records: {_worded(self.counts)}; {VALIDATION_FILE} lists them")
        if test := self.left_out.get("test"):
            lines.append(f"the test split lacks {_worded(test)}: metrics on it do not compare with published ones")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries and lists, for JSON."""
        return {
            "total": self.total,
            "good": self.good,
            "counts": dict(sorted(self.counts.items())),
            "bad": list(self.bad),
            "joined": dict(sorted(self.joined.items())),
            "splits": {name: {"listed": dict(s.listed), "kept": dict(s.kept)} for name, s in self.splits.items()},
        }

    def write(self, folder: Path) -> None:
        """Write `validation.json` into the folder of a prepared dataset."""
        text = json.dumps(self.to_json(), indent=1, sort_keys=True)
        (folder / VALIDATION_FILE).write_text(text + "\n", encoding="utf-8")


class Tally:
    """Counts the pictures and captions of each split, as they are listed and as they are kept."""

    def __init__(self) -> None:
        self._listed: dict[str, Counter[str]] = {}
        self._kept: dict[str, Counter[str]] = {}

    def add_listed(self, split: str, *, pictures: int, captions: int) -> None:
        self._listed.setdefault(split, Counter()).update(pictures=pictures, captions=captions)

    def add_kept(self, split: str, *, captions: int) -> None:
        self._kept.setdefault(split, Counter()).update(pictures=1, captions=captions)

    def add_recorded(self, folder: Path) -> None:
        """Add, as listed, what was left out when the dataset in a folder was prepared. Raises as `recorded_splits` does."""
        for split, counts in recorded_splits(folder).items():
            self.add_listed(split, **counts.left_out)

    def counts(self) -> dict[str, SplitCounts]:
        nothing = Counter(pictures=0, captions=0)
        return {
            name: SplitCounts(listed, self._kept.get(name, nothing)) for name, listed in sorted(self._listed.items())
        }


def recorded_splits(folder: Path) -> dict[str, SplitCounts]:
    """Return the counts of each split of a prepared dataset; none where no validation is recorded.

    Raises DataError for a `validation.json` that cannot be read.
    """
    path = folder / VALIDATION_FILE
    if not path.is_file():
        return {}
    try:
        splits = json.loads(path.read_text(encoding="utf-8")).get("splits", {})
        return {name: SplitCounts(**counts) for name, counts in splits.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not the record of a validation ({error}): prepare the dataset again") from error


def _worded(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)
