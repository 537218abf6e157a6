"""What of a dataset is there: its counts beside the published ones, and which pictures are missing. Pictures are not opened."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.persons.pictures import split_address
from components.persons.published.layouts import Counts, Layout
from components.persons.published.ledger import Ledger
from components.persons.published.readers import Source
from components.persons.records import SPLITS


@dataclass(frozen=True)
class Survey:
    """What the annotation files of a dataset list, and what lies beside them.

    Attributes:
        splits: split -> counts, in the order train, val, test, and others after them.
        missing: picture folder (its first two parts, such as imgs/cam_a) -> pictures that are listed and not there.
        example: one of those, as listed; empty when all are there.
        shared: identities that are in more than one split.
        without_caption: pictures with no caption, or an empty one.
    """

    splits: dict[str, Counts]
    missing: dict[str, int]
    example: str
    shared: int
    without_caption: int

    @property
    def images(self) -> int:
        return sum(counts.images or 0 for counts in self.splits.values())

    @property
    def missing_fraction(self) -> float:
        """The share of the listed pictures that is not there."""
        return sum(self.missing.values()) / max(1, self.images)


def survey(source: Source) -> Survey:
    """Count a dataset. Reads its annotation files record by record and asks for every picture whether it is there.

    Raises DataError where an annotation file is malformed.
    """
    images: Counter[str] = Counter()
    captions: Counter[str] = Counter()
    identities = Ledger()
    missing: Counter[str] = Counter()
    shards: dict[str, bool] = {}  # hold many pictures: asked for once
    example, without_caption = "", 0
    for record in source.records():
        images[record.split] += 1
        captions[record.split] += len(record.captions)
        identities.vote(record.identity, record.split)
        without_caption += not record.captions or not all(caption.strip() for caption in record.captions)
        file, row = split_address(record.image_path)
        if row is not None and file not in shards:
            shards[file] = _is_file(source.folder, file)
        if not (_is_file(source.folder, file) if row is None else shards[file]):
            missing["/".join(PurePosixPath(file).parent.parts[:2]) or "."] += 1
            example = example or record.image_path
    order = [*SPLITS, *sorted(set(images) - set(SPLITS))]
    voters = identities.voters()
    return Survey(
        {name: Counts(images[name], captions[name], voters[name]) for name in order if name in images},
        dict(sorted(missing.items())),
        example,
        len({identity for identity, _, _ in identities.divided()}),
        without_caption,
    )


def differences(found: Survey, layout: Layout) -> list[str]:
    """Where the counts are not the published ones, a line each: "val: 3,000 images, published 3,078"."""
    lines = []
    for split in dict.fromkeys((*layout.published, *found.splits)):
        here = found.splits.get(split, Counts(0, 0, 0))
        stated = layout.published.get(split, Counts(0, 0, 0))
        for kind in ("images", "captions", "identities"):
            expected, counted = getattr(stated, kind), getattr(here, kind)
            if expected is not None and expected != counted:
                lines.append(f"{split}: {counted:,} {kind}, published {expected:,}")
    return lines


def _is_file(folder: Path, file: str) -> bool:
    """Whether a listed file is there. One that is listed outside the folder is not, whatever lies there."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        return False
    try:
        return (folder / path).is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False
