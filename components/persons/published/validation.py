"""Validate every record before anything is computed from it, and report the bad ones with a reason."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from components.errors import DataError, ParameterError
from components.persons.pictures import PictureReader, split_address
from components.persons.pixels import MIN_SIDE, decode_rgb
from components.persons.published.fields import EMPTY, NOT_ENCODABLE, caption_fault
from components.persons.published.ledger import Ledger
from components.persons.published.locations import LEAVES, MISSING, PictureFolder, UnusablePathError
from components.persons.published.prepared import is_prepared
from components.persons.published.repetitions import Repetitions
from components.persons.published.validation_report import Tally, ValidationReport
from components.persons.records import SPLITS, Record, RecordSource

REASONS = {
    LEAVES: "absolute, or contains '..'",
    MISSING: "no such picture in the dataset's folder",
    "corrupt image": "cannot be decoded",
    EMPTY: "no caption, or one without words",
    NOT_ENCODABLE: "a caption with half of a character",
    "unknown split": f"not one of {', '.join(SPLITS)}",
    "duplicate": "has the bytes of a picture of a later split, which stays there",
    "identity in two splits": "pictures of one person must share a split",
    "false word positions": "wrong_words does not fit the captions",
}
"""Every reason for which a record, or a caption of it, is left out, with its explanation."""

LISTED_AGAIN, SAME_PICTURE = "listed again", "same picture of another identity"
"""Why records are joined with earlier ones."""


class ValidatedRecords:
    """Iterate over the good records of a dataset, with image paths that can be opened.

    The smallest thing is left out: of a record with a bad caption that caption alone, as long as another one is left.

    A path that is listed again, with the same identity and split, adds its captions to the first record. Pictures with equal bytes
    all stay in val and test, as in the galleries of published results. A picture of train that is also in val or test is left out,
    and so is one of val that is in test. In train, equal pictures of several identities take the first of these, as they would be
    negatives of each other. An identity in several splits is good only in the split that holds most of its pictures (on a tie:
    train, then val, then test).

    The records are read two or three times and not kept in memory; addresses and digests of pictures are in temporary files.

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
        checks, tally = _Checks(self._dataset), Tally()
        total = good = 0
        bad: list[dict[str, Any]] = []
        for index, listed in enumerate(self._dataset):
            total += 1
            record = checks.repetitions.joined(index, listed)
            tally.add_listed(listed.split, pictures=int(record is not None), captions=len(listed.captions))
            if record is None:
                checks.joined[LISTED_AGAIN] += 1
                continue
            kept: Record | None = None
            try:
                kept, fault = checks.check(record)
            except _RecordFault as error:
                fault = error
            if fault:
                place = {"index": index, "image_path": record.image_path, "identity": record.identity}
                left_out = "caption" if kept else "picture"
                bad.append({**place, "reason": fault.reason, "detail": str(fault), "left_out": left_out})
            if kept:
                good += 1
                tally.add_kept(kept.split, captions=len(kept.captions))
                yield kept
        if is_prepared(self._dataset.folder):
            tally.add_recorded(self._dataset.folder)
        counts_by_reason = dict(Counter(entry["reason"] for entry in bad))
        self._report = ValidationReport(total, good, counts_by_reason, tuple(bad), dict(checks.joined), tally.counts())
        if not total:
            raise DataError(f"{self._dataset.name} lists no pictures")
        if bad and (len(bad) > self._max_bad_fraction * total or not good):
            self._refuse(self._report)

    def _refuse(self, report: ValidationReport) -> None:
        kinds = ", ".join(f"{n} {reason}" for reason, n in sorted(report.counts.items(), key=lambda item: -item[1]))
        first = report.bad[0]
        raise DataError(
            f"{self._dataset.name}: {len(report.bad)} of {report.total} records are bad ({kinds}), allowed is a fraction of "
            f"{self._max_bad_fraction:g} (max_bad_fraction); first: record {first['index']}, {first['image_path']!r:.200}: "
            f"{first['detail']}"
        )


def validate_records(dataset: RecordSource, *, max_bad_fraction: float = 0.0) -> tuple[list[Record], ValidationReport]:
    """Return the good records of a dataset and the report. Raises as `ValidatedRecords` does."""
    validation = ValidatedRecords(dataset, max_bad_fraction=max_bad_fraction)
    good = list(validation)
    return good, validation.report


class _RecordFault(Exception):
    """A record, or a caption of it, is bad; `reason` is one of REASONS, and the message gives the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _Checks:
    """The checks of a record, with what has to be known of all other records."""

    def __init__(self, dataset: RecordSource) -> None:
        self.joined: Counter[str] = Counter()
        self.repetitions = Repetitions()
        self._places, self._reader = PictureFolder(dataset.folder), PictureReader()
        votes = Ledger()
        for index, record in enumerate(dataset):
            self.repetitions.add(index, record)
            if record.split in SPLITS:
                votes.vote(record.identity, record.split)
        self._home_split = _home_splits(votes)
        self._identities = Ledger()  # of the pictures of train, by digest
        self._held_out = Ledger()
        if set(votes.voters()) - {"train"}:
            self._note_held_out(dataset)

    def check(self, record: Record) -> tuple[Record, _RecordFault | None]:
        """Return the record as it is kept, and the fault of a caption that it is kept without. Raises _RecordFault."""
        self._check_split(record)
        kept, fault = _with_good_captions(record)
        try:
            address = self._places.address(record.image_path)
        except UnusablePathError as error:
            raise _RecordFault(error.reason, str(error)) from error
        digest = self._check_picture(record, address)
        for split in SPLITS[SPLITS.index(record.split) + 1 :]:
            if equal := self._held_out.find(split.encode() + digest):
                raise _RecordFault("duplicate", f"has the bytes of {equal}")
        if record.split == "train":
            self._identities.note(digest, str(record.identity))
            first = int(self._identities.find(digest) or record.identity)
            if first != record.identity:
                self.joined[SAME_PICTURE] += 1
                kept = replace(kept, identity=first)
        return replace(kept, image_path=address), fault

    def _check_split(self, record: Record) -> None:
        if record.split not in SPLITS:
            raise _RecordFault("unknown split", f"split is {record.split!r}, must be one of {', '.join(SPLITS)}")
        home = self._home_split.get(record.identity, record.split)
        if home != record.split:
            raise _RecordFault(
                "identity in two splits",
                f"identity {record.identity} is in {record.split}, but mostly in {home}: number the people of all splits together",
            )

    def _check_picture(self, record: Record, address: str) -> bytes:
        """Return the digest of a picture that can be decoded."""
        try:
            content = self._reader.read(address)
            width, height = decode_rgb(content).size
        except DataError as error:
            file, listed = split_address(address)[0], split_address(record.image_path)[0]
            raise _RecordFault("corrupt image", str(error).replace(file, listed)) from error
        except OSError as error:
            raise _RecordFault("corrupt image", f"cannot be read: {error.strerror}") from error
        if min(width, height) < MIN_SIDE:
            raise _RecordFault("corrupt image", f"{width} x {height} pixels")
        return hashlib.sha256(content).digest()

    def _note_held_out(self, dataset: RecordSource) -> None:
        """Note the digests of the pictures of val and test, to know the equal ones of an earlier split when they come."""
        for index, record in enumerate(dataset):
            if record.split == "train":
                continue
            try:
                self._check_split(record)
                _with_good_captions(record)
                content = self._reader.read(self._places.address(record.image_path))
            except (_RecordFault, DataError, OSError):
                continue  # left out when its turn comes
            named = f"record {index}, {record.image_path!r} (identity {record.identity}, {record.split})"
            self._held_out.note(record.split.encode() + hashlib.sha256(content).digest(), named)


def _home_splits(votes: Ledger) -> dict[int, str]:
    """The split that each identity found in several splits is assigned to."""
    found: dict[int, Counter[str]] = {}
    for person, split, count in votes.divided():
        found.setdefault(person, Counter())[split] = count
    return {person: max(SPLITS, key=lambda split: count[split]) for person, count in found.items()}


def _with_good_captions(record: Record) -> tuple[Record, _RecordFault | None]:
    """Return the record with its good captions, and the first fault of another one. Raises _RecordFault where none is good."""
    if not record.captions:
        raise _RecordFault(EMPTY, "no caption")
    if record.wrong_words and not _word_positions_fit(record):
        raise _RecordFault(
            "false word positions", f"wrong_words {record.wrong_words} for {len(record.captions)} captions"
        )
    faults = [caption_fault(caption) for caption in record.captions]
    good = [place for place, fault in enumerate(faults) if fault is None]
    found = [
        _RecordFault(fault[0], f"caption {place} of {len(faults)} {fault[1]}")
        for place, fault in enumerate(faults, 1)
        if fault
    ]
    if not good:
        raise found[0]
    if found:
        wrong = tuple(record.wrong_words[place] for place in good) if record.wrong_words else ()
        record = replace(record, captions=tuple(record.captions[place] for place in good), wrong_words=wrong)
    if record.short_caption is not None and (fault := caption_fault(record.short_caption)):
        found.append(_RecordFault(fault[0], f"short_caption {fault[1]}"))
        record = replace(record, short_caption=None)
    return record, found[0] if found else None


def _word_positions_fit(record: Record) -> bool:
    return len(record.wrong_words) == len(record.captions) and all(
        0 <= position < len(caption.split())
        for positions, caption in zip(record.wrong_words, record.captions, strict=True)
        for position in positions
    )
