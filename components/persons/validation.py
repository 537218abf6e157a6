"""Checks every record before anything is computed from it, and says what is wrong with the bad ones."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image

from components.errors import DataError, ParameterError
from components.persons.readers import Listing
from components.persons.records import SPLITS, Record

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
"""Every reason a record can be refused for, with its explanation."""


@dataclass(frozen=True)
class ValidationReport:
    """The outcome of a validation.

    Attributes:
        total: records read.
        good: records kept.
        counts: reason -> bad records.
        bad: one entry a bad record: index, image_path, identity, reason, detail.
    """

    total: int
    good: int
    counts: dict[str, int]
    bad: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries and lists."""
        return {
            "total": self.total,
            "good": self.good,
            "counts": dict(sorted(self.counts.items())),
            "bad": list(self.bad),
        }


def validate_records(listing: Listing, *, max_bad_fraction: float = 0.0) -> tuple[list[Record], ValidationReport]:
    """Check each record of `listing`; return the good ones (their `image_path` can be opened) and a report.

    Of duplicates the first is kept. An identity in two splits is bad everywhere but in the split it has the most
    pictures in (of equals: train, then val, then test).

    Raises:
        ParameterError: `max_bad_fraction` outside [0, 1].
        DataError: more than that fraction of the records is bad, or none is good. One line.
    """
    if not 0.0 <= max_bad_fraction <= 1.0:
        raise ParameterError(f"max_bad_fraction is {max_bad_fraction}; it is a fraction, from 0 to 1")
    home_split = _home_splits(listing)
    files_seen: dict[Path, int] = {}
    bytes_seen: dict[bytes, int] = {}
    good: list[Record] = []
    bad: list[dict[str, Any]] = []
    for index, record in enumerate(listing.records):
        problem = (
            _check_annotation(record, home_split)
            or _check_path(record, listing.folder)
            or _check_picture(record, index, listing, files_seen, bytes_seen)
        )
        if problem:
            reason, detail = problem
            place = {"index": index, "image_path": record.image_path, "identity": record.identity}
            bad.append({**place, "reason": reason, "detail": detail})
        else:
            good.append(replace(record, image_path=str((listing.folder / record.image_path).resolve())))
    total = len(listing.records)
    counts = dict(Counter(entry["reason"] for entry in bad))
    report = ValidationReport(total, len(good), counts, tuple(bad))
    if bad and (len(bad) > max_bad_fraction * total or not good):
        kinds = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items(), key=lambda item: -item[1]))
        first = bad[0]
        raise DataError(
            f"{listing.name}: {len(bad)} of {total} records are bad ({kinds}), allowed is a fraction of "
            f"{max_bad_fraction:g}; first: record {first['index']}, {first['image_path']!r}: {first['detail']}"
        )
    return good, report


Problem = tuple[str, str] | None


def _home_splits(listing: Listing) -> dict[int, str]:
    """The one split each identity may be in."""
    votes: dict[int, Counter[str]] = {}
    for record in listing.records:
        if record.split in SPLITS:
            votes.setdefault(record.identity, Counter())[record.split] += 1
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
    if home_split[record.identity] != record.split:
        home = home_split[record.identity]
        return "identity in two splits", f"identity {record.identity} is in {record.split}, but mostly in {home}"
    return None


def _check_path(record: Record, folder: Path) -> Problem:
    reason = "path leaves the folder"
    posix, windows = PurePosixPath(record.image_path), PureWindowsPath(record.image_path)
    if posix.is_absolute() or windows.is_absolute() or windows.drive or windows.root:
        return reason, "absolute path; paths are relative to the dataset's folder"
    if ".." in posix.parts or ".." in windows.parts or "\0" in record.image_path:
        return reason, "contains '..'"
    if not (folder / record.image_path).resolve().is_relative_to(folder.resolve()):
        return reason, "a link that points outside the dataset's folder"
    return None


def _check_picture(
    record: Record, index: int, listing: Listing, files_seen: dict[Path, int], bytes_seen: dict[bytes, int]
) -> Problem:
    path = (listing.folder / record.image_path).resolve()
    if not path.is_file():
        return "missing file", f"{path} does not exist"
    if path in files_seen:
        return "duplicate", f"the file of record {files_seen[path]}"
    try:
        content = path.read_bytes()
        with Image.open(path) as image:
            image.load()
            if min(image.size) < 2:
                return "corrupt image", f"{image.size[0]} x {image.size[1]} pixels"
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on broken files
        return "corrupt image", f"{type(error).__name__}: {error}"
    digest = hashlib.sha256(content).digest()
    if digest in bytes_seen:
        return "duplicate", f"the bytes of record {bytes_seen[digest]}"
    files_seen[path], bytes_seen[digest] = index, index
    return None
