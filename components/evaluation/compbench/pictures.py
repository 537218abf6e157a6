"""Pictures named as T2I-CompBench names them, `<prompt>_<6-digit number>.png`, and which prompt each belongs to.

The number counts all pictures of a category from 0, ten of a prompt in a row; the published scripts sort by it.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from components.errors import DataError

PER_PROMPT = 10
Progress = Callable[[Iterable[Any]], Iterable[Any]]  # wraps the batches of a long loop, to show how far it is
_NAME = re.compile(r"(?P<prompt>.+)_(?P<number>\d{6,})\.png", re.DOTALL)


@dataclass(frozen=True)
class PromptPicture:
    """A picture file: the prompt it was drawn for, and its number in its name."""

    prompt: str
    number: int
    path: Path


@dataclass(frozen=True)
class Matched:
    """The pictures of some prompts, by number, and what does not fit.

    missing: prompt -> how many of its pictures are not there. extra: names of files that are no picture of any prompt.
    """

    pictures: tuple[PromptPicture, ...]
    missing: dict[str, int]
    extra: tuple[str, ...]


def match_pictures(prompts: Sequence[str], folder: Path, per_prompt: int = PER_PROMPT) -> Matched:
    """The pictures in `folder` of each prompt, sorted by number. More than `per_prompt` of a prompt are taken all the same.

    Raises DataError when the folder is not there, or holds no picture of any of the prompts.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pictures")
    order = {prompt: place for place, prompt in enumerate(prompts)}
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
    counts = dict.fromkeys(prompts, 0)
    for picture in pictures:
        counts[picture.prompt] += 1
    missing = {prompt: per_prompt - count for prompt, count in counts.items() if count < per_prompt}
    return Matched(tuple(pictures), missing, tuple(extra))


def open_picture(picture: PromptPicture) -> Image.Image:
    """The decoded picture. Raises DataError when it is not a whole one."""
    try:
        with Image.open(picture.path) as image:
            image.load()
            return image
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{picture.path}: cannot be read as a picture ({error}); draw it again") from error
