"""Picture files named as in T2I-CompBench, `<prompt>_<6-digit number>.png`, matched with their prompts.

The number counts all pictures of a category from 0, ten per prompt in a row; the published scripts sort by it.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from components.errors import DataError
from components.persons.pixels import decode_rgb

PER_PROMPT = 10
Progress = Callable[[Iterable[Any]], Iterable[Any]]  # wraps the batches of a long loop to show progress
_NAME = re.compile(r"(?P<prompt>.+)_(?P<number>\d{6,})\.png", re.DOTALL)


@dataclass(frozen=True)
class PromptPicture:
    """A picture file with its prompt and its number, both from the name."""

    prompt: str
    number: int
    path: Path


@dataclass(frozen=True)
class Matched:
    """The pictures of some prompts, by number, and mismatches.

    missing: prompt -> number of its missing pictures. extra: names of files that belong to no prompt.
    """

    pictures: tuple[PromptPicture, ...]
    missing: dict[str, int]
    extra: tuple[str, ...]


def match_pictures(prompts: Sequence[str], folder: Path, per_prompt: int = PER_PROMPT) -> Matched:
    """Find the pictures of each prompt in `folder`, sorted by number, also more than `per_prompt` of a prompt.

    A prompt that is there twice has twice `per_prompt` pictures; where they are fewer, they are missing.
    Raises DataError where the folder is missing, or holds no picture of any of the prompts.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pictures")
    expected = {prompt: per_prompt * lines for prompt, lines in Counter(prompts).items()}
    order = {prompt: place for place, prompt in enumerate(expected)}
    pictures, extra = [], []
    for path in sorted(folder.iterdir()):
        found = _NAME.fullmatch(path.name)
        prompt = found["prompt"].strip() if found else ""
        if not path.is_file() or path.name.startswith("."):
            continue
        if found and prompt in order:
            pictures.append(PromptPicture(prompt, int(found["number"]), path))
        else:
            extra.append(path.name)
    if not pictures:
        raise DataError(f"{folder}: none of its {len(extra)} files is a picture of these prompts, <prompt>_000000.png")
    pictures.sort(key=lambda picture: (picture.number, order[picture.prompt]))
    missing = Counter(expected) - Counter(picture.prompt for picture in pictures)  # of each the positive counts
    return Matched(tuple(pictures), dict(missing), tuple(extra))


def open_picture(picture: PromptPicture) -> Image.Image:
    """Decode a picture to RGB. Raises DataError where it is broken."""
    try:
        return decode_rgb(picture.path.read_bytes())
    except OSError as error:
        raise DataError(f"{picture.path}: cannot be read: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"{picture.path}: {error}; draw it again") from error
