"""Checks every record before anything is computed from it, and says what is wrong with the bad ones."""

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image

from components.errors import DataError, ParameterError
from components.persons.pictures import PictureReader, embedded, split_address
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
    seen = _Seen()
    good: list[Record] = []
    bad: list[dict[str, Any]] = []
    for index, record in enumerate(listing.records):
        problem = (
            _check_annotation(record, home_split)
            or _check_path(record, listing.folder)
            or _check_picture(record, index, listing, seen)
        )
        if problem:
            reason, detail = problem
            place = {"index": index, "image_path": record.image_path, "identity": record.identity}
            bad.append({**place, "reason": reason, "detail": detail})
        else:
            good.append(replace(record, image_path=_resolved(listing.folder, record.image_path)))
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


class _Seen:
    """The pictures that were good so far, by address and by content, and the reader that they are read with."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.digests: dict[bytes, int] = {}
        self.reader = PictureReader()


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


def _resolved(folder: Path, image_path: str) -> str:
    """An address that can be opened from anywhere, links followed."""
    file, row = split_address(image_path)
    path = str((folder / file).resolve())
    return path if row is None else embedded(path, row)


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


def _check_picture(record: Record, index: int, listing: Listing, seen: _Seen) -> Problem:
    address = _resolved(listing.folder, record.image_path)
    file, _ = split_address(address)
    if not Path(file).is_file():
        return "missing file", "no such file in the dataset's folder"
    if address in seen.addresses:
        return "duplicate", f"the file of {_named(seen.addresses[address], listing)}"
    try:
        content = seen.reader.read(address)
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if min(image.size) < 2:
                return "corrupt image", f"{image.size[0]} x {image.size[1]} pixels"
    except DataError as error:
        return "corrupt image", str(error).replace(file, split_address(record.image_path)[0])
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on broken files
        # Without the message where it names a buffer by its place in memory: the report is the same bytes every time.
        told = "" if "<_io" in str(error) else f": {error}"
        return "corrupt image", f"{type(error).__name__}{told}"
    digest = hashlib.sha256(content).digest()
    if digest in seen.digests:
        return "duplicate", f"the bytes of {_named(seen.digests[digest], listing)}"
    seen.addresses[address], seen.digests[digest] = index, index
    return None


def _named(index: int, listing: Listing) -> str:
    """A record in words, with what makes a duplicate of it harmful: another split, another identity."""
    record = listing.records[index]
    return f"record {index}, {record.image_path!r} (identity {record.identity}, {record.split})"
