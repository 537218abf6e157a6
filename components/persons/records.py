"""What a dataset of people in pictures consists of: one record a picture."""

from dataclasses import dataclass, field

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Record:
    """One picture with its sentences.

    Attributes:
        image_path: as an annotation file lists it, relative to the dataset's folder; once validated
            (`read_dataset`, `validate_records`), a path that can be opened.
        identity: the person; pictures of one person share it. Never in two splits.
        captions: full sentences, as published.
        split: "train", "val" or "test".
        source: the dataset's name.
        short_caption: the compact form of the drawn set; None for published sets.
        attributes: what the picture shows (drawn set only), attribute -> value.
        wrong_words: for each caption, the positions in `caption.split()` of words that are known to be false.
    """

    image_path: str
    identity: int
    captions: tuple[str, ...]
    split: str
    source: str
    short_caption: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    wrong_words: tuple[tuple[int, ...], ...] = ()
