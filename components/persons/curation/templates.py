"""Caption templates, and the prompt that makes a vision-language model fill them in (GA-DMS section 3 and A.2).

The paper rewrote the captions of the three benchmarks into 1 000 templates. These are written for this project, without knowledge
of a benchmark; a file with one template per line replaces them.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from components.errors import DataError
from components.text_files import read_lines
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
_PLACEHOLDER = re.compile(r"\[[^\[\]]+\]|<[^<>\s][^<>]*>")


def read_templates(path: Path) -> tuple[str, ...]:
    """Read templates from a text file, one per line. Raises DataError for a line without a placeholder."""
    try:
        lines = [line.strip() for line in read_lines(path)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as templates: {error}") from error
    templates = tuple(line for line in lines if line)
    plain = [line for line in templates if not is_unfilled(line)]
    if not templates or plain:
        raise DataError(
            f"{path}: every line must be a template, with placeholders such as [coloured top]; {(plain or ['none'])[0]!r} is not"
        )
    return templates


def choose_templates(templates: Sequence[str], seed: int, picture: int, count: int) -> list[str]:
    """Choose `count` templates for a picture, different ones where possible, by (seed, picture) alone."""
    random: np.random.Generator = numpy_generator(seed, "caption template", picture)
    order = [int(i) for i in random.permutation(len(templates))]
    return [templates[order[i % len(order)]] for i in range(count)]


def instruction(template: str, words: int) -> str:
    """Return the prompt that goes with the picture; its rules are those of the paper."""
    return (
        "Describe the dominant person in the picture in English, following the structured template below.\n"
        "Rules: describe that person only, not other people and not the background. State the colour of each garment and "
        "accessory. Use a vague colour or a general noun only where you are not sure. Do not guess, and mention nothing that "
        "cannot be seen: leave out a part of the template that the picture does not show. Begin with what is most striking. "
        f"Use fewer than {words} words. Answer with the caption only.\n"
        f"Structured template: {template}"
    )


def is_unfilled(caption: str) -> bool:
    """Whether a caption still holds a placeholder of its template."""
    return bool(_PLACEHOLDER.search(caption))
