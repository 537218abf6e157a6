"""One record per picture of a dataset of people."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Record:
    """One picture with its captions.

    Attributes:
        image_path: as an annotation file lists it, relative to the dataset's folder; after validation (`read_dataset`,
            `validate_records`) a path that can be opened.
        identity: number of the person. Pictures of one person share it; it never occurs in two splits.
        captions: full sentences, as published.
        split: "train", "val" or "test".
        source: the dataset's name.
        short_caption: compact caption of the drawn set; None for published sets.
        attributes: what the picture shows (drawn set only), attribute -> value.
        wrong_words: for each caption, the positions in `caption.split()` of words known to be false.
    """

    image_path: str
    identity: int
    captions: tuple[str, ...]
    split: str
    source: str
    short_caption: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    wrong_words: tuple[tuple[int, ...], ...] = ()


class RecordSource(Protocol):
    """Records that can be read more than once, with image paths relative to `folder`."""

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> Path: ...

    def __iter__(self) -> Iterator[Record]: ...
