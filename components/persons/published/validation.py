"""Validate every record before anything is computed from it, and report the bad ones with a reason."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from components.errors import DataError, ParameterError
from components.persons.pictures import PictureReader, shard_address, split_address
from components.persons.pixels import MIN_SIDE, decode_rgb
from components.persons.published.ledger import Ledger
from components.persons.records import SPLITS, Record, RecordSource

REASONS = {
    "path leaves the folder": "absolute, contains '..', or a link to the outside",
    "missing file": "no such picture in the dataset's folder",
    "corrupt image": "cannot be decoded",
    "empty caption": "no caption, or one without words",
    "unknown split": f"not one of {', '.join(SPLITS)}",
    "duplicate": "the same file, or one with the same bytes, is listed before",
    "identity in two splits": "pictures of one person must share a split",
    "false word positions": "wrong_words does not fit the captions",
}
"""Every reason for which a record is refused, with its explanation."""


@dataclass(frozen=True)
class ValidationReport:
    """The outcome of a validation.

    Attributes:
        total: records read.
        good: records kept.
        counts: reason -> bad records.
        bad: one entry per bad record: index, image_path, identity, reason, detail.
    """

    total: int
    good: int
    counts: dict[str, int]
    bad: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries and lists, for JSON."""
        return {
            "total": self.total,
            "good": self.good,
            "counts": dict(sorted(self.counts.items())),
            "bad": list(self.bad),
        }


class ValidatedRecords:
    """Iterate over the good records of a dataset, with image paths that can be opened.

    The records are read twice, first for the splits of each identity, and not kept in memory; the addresses and digests of pictures
    are in a temporary file. The first of duplicates is good. An identity in several splits is good only in the split that holds
    most of its pictures (on a tie: train, then val, then test).

    Raises ParameterError for a `max_bad_fraction` outside [0, 1]. The iteration ends with DataError, one line, where more than that
    fraction of the records is bad, or none is good.
    """

    def __init__(self, dataset: RecordSource, *, max_bad_fraction: float = 0.0) -> None:
        if not 0.0 <= max_bad_fraction <= 1.0:
            raise ParameterError(f"max_bad_fraction is {max_bad_fraction}; it is a fraction, from 0 to 1")
        self._dataset, self._max_bad_fraction = dataset, max_bad_fraction
        self._report: ValidationReport | None = None

    @property
    def report(self) -> ValidationReport:
        """The outcome, available once the iteration is complete."""
        if self._report is None:
            raise RuntimeError("the report is complete only after the last record")
        return self._report

    def __iter__(self) -> Iterator[Record]:
        folder, total, good = self._dataset.folder, 0, 0
        home_split = _home_splits(self._dataset)
        seen = _Seen()
        bad: list[dict[str, Any]] = []
        for index, record in enumerate(self._dataset):
            total += 1
            problem = (
                _check_annotation(record, home_split)
                or _check_path(record, folder)
                or _check_picture(record, index, folder, seen)
            )
            if problem:
                reason, detail = problem
                place = {"index": index, "image_path": record.image_path, "identity": record.identity}
                bad.append({**place, "reason": reason, "detail": detail})
            else:
                good += 1
                yield replace(record, image_path=_resolved(folder, record.image_path))
        counts = dict(Counter(entry["reason"] for entry in bad))
        self._report = ValidationReport(total, good, counts, tuple(bad))
        if not total:
            raise DataError(f"{self._dataset.name} lists no pictures")
        if bad and (len(bad) > self._max_bad_fraction * total or not good):
            self._refuse(self._report)

    def _refuse(self, report: ValidationReport) -> None:
        kinds = ", ".join(f"{n} {reason}" for reason, n in sorted(report.counts.items(), key=lambda item: -item[1]))
        first = report.bad[0]
        raise DataError(
            f"{self._dataset.name}: {len(report.bad)} of {report.total} records are bad ({kinds}), allowed is a fraction of "
            f"{self._max_bad_fraction:g}; first: record {first['index']}, {first['image_path']!r}: {first['detail']}"
        )


def validate_records(dataset: RecordSource, *, max_bad_fraction: float = 0.0) -> tuple[list[Record], ValidationReport]:
    """Return the good records of a dataset and the report. Raises as `ValidatedRecords` does."""
    validation = ValidatedRecords(dataset, max_bad_fraction=max_bad_fraction)
    good = list(validation)
    return good, validation.report


Problem = tuple[str, str] | None


class _Seen:
    """The good pictures so far, by address and by content, and the reader of pictures."""

    def __init__(self) -> None:
        self.addresses, self.digests = Ledger(), Ledger()
        self.reader = PictureReader()


def _home_splits(records: Iterable[Record]) -> dict[int, str]:
    """The split that each identity found in several splits is assigned to."""
    ledger = Ledger()
    for record in records:
        if record.split in SPLITS:
            ledger.vote(record.identity, record.split)
    votes: dict[int, Counter[str]] = {}
    for person, split, count in ledger.divided():
        votes.setdefault(person, Counter())[split] = count
    return {person: max(SPLITS, key=lambda split: count[split]) for person, count in votes.items()}


def _check_annotation(record: Record, home_split: Mapping[int, str]) -> Problem:
    if record.split not in SPLITS:
        return "unknown split", f"split is {record.split!r}, must be one of {', '.join(SPLITS)}"
    if not record.captions or not all(caption.split() for caption in record.captions):
        return "empty caption", f"captions are {list(record.captions)!r}"
    if record.short_caption is not None and not record.short_caption.split():
        return "empty caption", "short_caption is empty"
    if record.wrong_words:
        fits = len(record.wrong_words) == len(record.captions) and all(
            0 <= position < len(caption.split())
            for positions, caption in zip(record.wrong_words, record.captions, strict=True)
            for position in positions
        )
        if not fits:
            return "false word positions", f"wrong_words {record.wrong_words} for {len(record.captions)} captions"
    home = home_split.get(record.identity, record.split)
    if home != record.split:
        return "identity in two splits", f"identity {record.identity} is in {record.split}, but mostly in {home}"
    return None


def _resolved(folder: Path, image_path: str) -> str:
    """An absolute address, links followed."""
    file, row = split_address(image_path)
    path = str((folder / file).resolve())
    return path if row is None else shard_address(path, row)


def _check_path(record: Record, folder: Path) -> Problem:
    reason, file = "path leaves the folder", split_address(record.image_path)[0]
    posix, windows = PurePosixPath(file), PureWindowsPath(file)
    if posix.is_absolute() or windows.is_absolute() or windows.drive or windows.root:
        return reason, "absolute path; paths are relative to the dataset's folder"
    if ".." in posix.parts or ".." in windows.parts or "\0" in file:
        return reason, "contains '..'"
    if not (folder / file).resolve().is_relative_to(folder.resolve()):
        return reason, "a link that points outside the dataset's folder"
    return None


def _check_picture(record: Record, index: int, folder: Path, seen: _Seen) -> Problem:
    address = _resolved(folder, record.image_path)
    file, _ = split_address(address)
    if not Path(file).is_file():
        return "missing file", "no such file in the dataset's folder"
    key = address.encode("utf-8", "surrogateescape")
    if first := seen.addresses.find(key):
        return "duplicate", f"the file of {first}"
    try:
        content = seen.reader.read(address)
        width, height = decode_rgb(content).size
    except DataError as error:
        return "corrupt image", str(error).replace(file, split_address(record.image_path)[0])
    except OSError as error:
        return "corrupt image", f"cannot be read: {error.strerror}"
    if min(width, height) < MIN_SIDE:
        return "corrupt image", f"{width} x {height} pixels"
    digest = hashlib.sha256(content).digest()
    if first := seen.digests.find(digest):
        return "duplicate", f"the bytes of {first}"
    # Identity and split are named because a duplicate does harm where they differ.
    named = f"record {index}, {record.image_path!r} (identity {record.identity}, {record.split})"
    seen.addresses.note(key, named)
    seen.digests.note(digest, named)
    return None
