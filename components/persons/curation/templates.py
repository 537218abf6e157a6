"""Sentences with places to fill in, and how a vision-language model is asked to fill them (GA-DMS section 3 and A.2).

The paper rewrote the captions of the three benchmarks into 1 000 templates. These here are written for this project and
know no benchmark; a file with one template a line takes their place.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from components.errors import DataError
from components.training.randomness import numpy_generator

TEMPLATES: tuple[str, ...] = (
    "A [man or woman] with [hairstyle] wears [coloured top], [coloured trousers or skirt] and [coloured shoes].",
    "Wearing [coloured top] over [coloured trousers or skirt], the [man or woman] carries [bag].",
    "The [man or woman] in [coloured top] has [hairstyle] and walks in [coloured shoes].",
    "[Hairstyle] and [headwear] belong to this [man or woman], who is dressed in [coloured top] and [coloured trousers or skirt].",
    "This [man or woman] carries [bag]; the clothes are [coloured top] and [coloured trousers or skirt].",
    "A [age] [man or woman], seen from [side], in [coloured top], [coloured trousers or skirt] and [coloured shoes].",
    "In [coloured shoes] and [coloured trousers or skirt], a [man or woman] with [hairstyle] wears [coloured top] with [pattern].",
    "The [build] [man or woman] has [coloured top] on, [bag] over the shoulder, and [coloured trousers or skirt] below.",
)
_PLACE = re.compile(r"\[[^\[\]]+\]|<[^<>\s][^<>]*>")


def read_templates(path: Path) -> tuple[str, ...]:
    """The templates of a text file, one a line; empty lines are left out. Raises DataError where none has a place to fill in."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no readable templates there: {error}") from error
    templates = tuple(line for line in lines if line)
    plain = [line for line in templates if not unfilled(line)]
    if not templates or plain:
        raise DataError(
            f"{path}: every line must be a template, with places such as [coloured top]; {(plain or ['none'])[0]!r} is not"
        )
    return templates


def choose(templates: Sequence[str], seed: int, picture: int, count: int) -> list[str]:
    """`count` templates for a picture, different ones while there are enough; they depend on (seed, picture) alone."""
    random: np.random.Generator = numpy_generator(seed, "caption template", picture)
    order = [int(i) for i in random.permutation(len(templates))]
    return [templates[order[i % len(order)]] for i in range(count)]


def instruction(template: str, words: int) -> str:
    """What a model is told beside the picture; the rules are those of the paper's prompt."""
    return (
        "Describe the dominant person in the picture in English, following the structured template below.\n"
        "Rules: describe that person only, not other people and not the background. State the colour of each garment and "
        "accessory. Use a vague colour or a general noun only where you are not sure. Do not guess, and mention nothing that "
        "cannot be seen: leave out a part of the template that the picture does not show. Begin with what is most striking. "
        f"Use fewer than {words} words. Answer with the caption only.\n"
        f"Structured template: {template}"
    )


def unfilled(caption: str) -> bool:
    """Whether a caption still has a place of its template in it."""
    return bool(_PLACE.search(caption))
