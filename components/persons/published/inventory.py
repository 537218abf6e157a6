"""Inventory of a dataset: its counts, compared with the published ones, and its missing pictures. Pictures are not opened."""

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

from components.persons.published.fields import good_captions
from components.persons.published.layouts import Counts, Layout
from components.persons.published.ledger import Ledger
from components.persons.published.locations import PictureFolder, UnusablePathError
from components.persons.records import SPLITS, RecordSource


@dataclass(frozen=True)
class Inventory:
    """Counts of a dataset's annotation files, and the listed pictures that are missing.

    Attributes:
        splits: split -> counts, in the order train, val, test, others.
        missing: picture folder (its first two parts, such as imgs/cam_a) -> number of listed pictures that are missing.
        example: the first missing picture, as listed, and why; empty where none is missing.
        shared: identities in more than one split.
        without_caption: pictures without a good caption.
        bad_captions: captions that validation leaves out.
        bad: records that validation finds bad, as far as can be told without opening pictures.
    """

    splits: dict[str, Counts]
    missing: dict[str, int]
    example: str
    shared: int
    without_caption: int
    bad_captions: int
    bad: int

    @property
    def images(self) -> int:
        return sum(counts.images or 0 for counts in self.splits.values())

    @property
    def bad_fraction(self) -> float:
        """Fraction of the records that is bad, to be compared with `prepare.max_bad_fraction`."""
        return self.bad / max(1, self.images)


def take_inventory(dataset: RecordSource) -> Inventory:
    """Count a dataset record by record, and check that each picture exists. Raises DataError for a malformed annotation file."""
    images: Counter[str] = Counter()
    captions: Counter[str] = Counter()
    identities = Ledger()
    missing: Counter[str] = Counter()
    places = PictureFolder(dataset.folder)
    example, without_caption, bad_captions, bad = "", 0, 0, 0
    for record in dataset:
        images[record.split] += 1
        captions[record.split] += len(record.captions)
        identities.vote(record.identity, record.split)
        faults = len(record.captions) - len(good_captions(record.captions))
        bad_captions += faults
        without_caption += faults == len(record.captions)
        is_bad = record.split not in SPLITS or bool(faults) or not record.captions
        try:
            places.address(record.image_path)
        except UnusablePathError as error:
            is_bad = True
            listed = PurePosixPath(record.image_path.replace("\\", "/"))
            missing[_printable("/".join(listed.parent.parts[:2]) or ".")] += 1
            example = example or _printable(f"{record.image_path} ({error})")
        bad += is_bad
    order = [*SPLITS, *sorted(set(images) - set(SPLITS))]
    voters = identities.voters()
    return Inventory(
        {name: Counts(images[name], captions[name], voters[name]) for name in order if name in images},
        dict(sorted(missing.items())),
        example,
        len({identity for identity, _, _ in identities.divided()}),
        without_caption,
        bad_captions,
        bad,
    )


def count_differences(found: Inventory, layout: Layout) -> list[str]:
    """One line per count that differs from the published one: "val: 3,000 images, published 3,078"."""
    lines = []
    for split in dict.fromkeys((*layout.published, *found.splits)):
        here = found.splits.get(split, Counts(0, 0, 0))
        stated = layout.published.get(split, Counts(0, 0, 0))
        for kind in ("images", "captions", "identities"):
            expected, counted = getattr(stated, kind), getattr(here, kind)
            if expected is not None and expected != counted:
                lines.append(f"{split}: {counted:,} {kind}, published {expected:,}")
    return lines


def _printable(text: str) -> str:
    """A listed path may hold half of a character, which no terminal takes."""
    return text.encode("utf-8", "backslashreplace").decode()
