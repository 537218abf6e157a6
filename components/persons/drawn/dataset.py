"""Write the drawn dataset as ordinary files in the layout of CUHK-PEDES, so that one reader serves both.

    reid_raw.json                       a list of {split, captions[2], file_path, processed_tokens, id} plus the keys
                                        short_caption, attributes, wrong_words, source
    imgs/<split>/<identity>_<n>.png

The same configuration and seed give the same bytes. Pictures depend on the seed and the number of their identity alone;
captions also on the whole training split (noise is drawn from its frequencies).
"""

import json
import re
from pathlib import Path
from typing import Any

from components.errors import ParameterError
from components.persons.drawn.attributes import Attributes, sample_identities
from components.persons.drawn.caption_noise import CaptionNoise
from components.persons.drawn.captions import short_caption
from components.persons.drawn.config import PRESETS, DrawnConfig
from components.persons.drawn.drawing import draw_person
from components.persons.drawn.reserved import is_reserved
from components.persons.pixels import encode_png
from components.training.randomness import numpy_generator

ANNOTATIONS = "reid_raw.json"
CAPTIONS_PER_IMAGE = 2


def write_drawn_dataset(folder: str | Path, config: DrawnConfig, seed: int) -> Path:
    """Draw the dataset into `folder`; returns the path of the annotation file, which is written last.

    Raises ParameterError where `folder` already holds a drawn dataset.
    """
    folder = Path(folder)
    annotations = folder / ANNOTATIONS
    if annotations.exists():
        raise ParameterError(f"{annotations} exists; write the drawn set to an empty folder")
    people = _people(config, seed)
    entries, shown = _draw_pictures(folder, people, config, seed)
    for number, (entry, picture) in enumerate(zip(entries, shown, strict=True)):
        entry["short_caption"] = short_caption(picture, numpy_generator(seed, "short caption", number))
    _describe(entries, shown, config, seed)
    annotations.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return annotations


def _people(config: DrawnConfig, seed: int) -> list[tuple[str, int, Attributes]]:
    """(split, identity number, attributes) of every person; numbers start at 1, as in CUHK-PEDES."""
    evaluated: dict[str, Any] = {"allowed": is_reserved} if config.reserve else {}
    trained: dict[str, Any] = {"allowed": lambda person: not is_reserved(person)} if config.reserve else {}
    test = sample_identities(
        config.test_identities,
        numpy_generator(seed, "people", "test"),
        near_duplicates=config.near_duplicates,
        **evaluated,
    )
    train = sample_identities(config.train_identities, numpy_generator(seed, "people", "train"), taken=test, **trained)
    taken = [*test, *train]
    val = sample_identities(config.val_identities, numpy_generator(seed, "people", "val"), taken=taken, **evaluated)
    people = [("train", person) for person in train] + [("val", person) for person in val]
    people += [("test", person) for person in test]
    return [(split, number, person) for number, (split, person) in enumerate(people, start=1)]


def _draw_pictures(
    folder: Path, people: list[tuple[str, int, Attributes]], config: DrawnConfig, seed: int
) -> tuple[list[dict[str, Any]], list[Attributes]]:
    for split in ("train", "val", "test"):
        (folder / "imgs" / split).mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    shown: list[Attributes] = []
    views = ("front", "back", "left", "right")
    for split, identity, person in people:
        for index in range(config.images_per_identity):
            picture = draw_person(
                person,
                numpy_generator(seed, "picture", identity, index),
                height=config.height,
                width=config.width,
                degradation=PRESETS[config.preset],
                view=views[index] if index < len(views) else None,
            )
            path = f"{split}/{identity:05d}_{index:02d}.png"
            (folder / "imgs" / path).write_bytes(encode_png(picture.pixels))
            entries.append({"split": split, "id": identity, "file_path": path, "source": "drawn"})
            shown.append(picture.shown)
    return entries, shown


def _describe(entries: list[dict[str, Any]], shown: list[Attributes], config: DrawnConfig, seed: int) -> None:
    """Add two long captions to each entry."""
    corpus = [picture for entry, picture in zip(entries, shown, strict=True) if entry["split"] == "train"]
    evaluation = CaptionNoise(corpus, config.eval_noise_rate)
    noise = {"train": CaptionNoise(corpus, config.noise_rate), "val": evaluation, "test": evaluation}
    for number, (entry, picture) in enumerate(zip(entries, shown, strict=True)):
        captions = [
            noise[entry["split"]].corrupt(picture, numpy_generator(seed, "long caption", number, copy))
            for copy in range(CAPTIONS_PER_IMAGE)
        ]
        entry["attributes"] = picture
        entry["captions"] = [caption.text for caption in captions]
        entry["wrong_words"] = [list(caption.wrong_words) for caption in captions]
        entry["processed_tokens"] = [re.findall(r"[a-z'-]+", caption.text.lower()) for caption in captions]
