"""Another domain of the same people, for the pre-training of encoders: pictures of a catalogue, with short captions.

An encoder that is to be adapted must not come from the domain that it is adapted to. So these pictures have other colours (of the
same names), other poses (standing) and other backgrounds (a bright backdrop, no street), and their captions are short, in one
style, and leave much out: HELD_OUT attributes are never stated, values of WORN_BY_NOBODY never seen, and of all synonyms only the
first is used.
"""

from collections.abc import Mapping

import numpy as np
from PIL import Image

from components.persons.drawn.attributes import Attributes
from components.persons.drawn.body import Palette, Pose
from components.persons.drawn.drawing import Look
from components.persons.drawn.lexicon import SYNONYMS
from components.persons.drawn.reserved import sample_unreserved

HELD_OUT = ("build", "skin", "lower_pattern", "shoe_kind", "shoe_colour", "bag_side", "view")
"""Attributes that no caption states."""
WORN_BY_NOBODY: Mapping[str, tuple[str, ...]] = {"hat": ("sunhat",), "bag": ("satchel",), "upper_kind": ("coat",)}
"""Values that no person has."""
COLOURS = Palette(
    cloth={
        "black": (62, 56, 66),
        "white": (226, 220, 204),
        "gray": (168, 164, 158),
        "blue": (92, 140, 208),
        "red": (164, 60, 70),
        "green": (98, 158, 96),
        "yellow": (216, 182, 92),
        "brown": (152, 112, 84),
        "pink": (220, 124, 152),
        "purple": (146, 98, 168),
    },
    pattern={
        "black": (150, 146, 154),
        "white": (150, 140, 122),
        "gray": (104, 100, 96),
        "blue": (40, 74, 132),
        "red": (226, 152, 148),
        "green": (44, 92, 50),
        "yellow": (134, 104, 34),
        "brown": (92, 62, 40),
        "pink": (150, 62, 94),
        "purple": (212, 178, 226),
    },
    skin={"pale": (232, 196, 172), "tan": (186, 134, 96), "dark": (86, 56, 40)},
    hair={
        "black": (44, 38, 40),
        "brown": (116, 78, 48),
        "blond": (212, 178, 96),
        "ginger": (176, 92, 52),
        "silver": (172, 172, 178),
    },
)
_SUBJECTS = ("{a} {gender}", "a photo of a {gender}", "{gender}", "a picture of a {gender}")
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "upper": ("upper_pattern", "upper_colour", "upper_kind"),
    "lower": ("lower_colour", "lower_kind"),
    "hair": ("hair_length", "hair_colour"),
    "hat": ("hat_colour", "hat"),
    "bag": ("bag_colour", "bag"),
}
_MOST_GROUPS = 3


def standing(view: str, rng: np.random.Generator) -> Pose:
    """Sample the pose of somebody who stands, with the arms anywhere."""
    stride, swing, sway = (float(rng.uniform(-reach, reach)) for reach in (0.15, 1.0, 1.0))
    return Pose(view, stride, swing, sway, float(rng.random()))


def backdrop(size: tuple[int, int], clutter: float, rng: np.random.Generator) -> Image.Image:
    """Draw a backdrop of one light colour that darkens towards an edge; `clutter` plays no part. Size: (width, height)."""
    width, height = size
    colour = rng.uniform(150, 250, size=3)
    slope = rng.uniform(-0.25, 0.25, size=2)
    rows, columns = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    shading = 1 + slope[0] * rows[:, None] + slope[1] * columns[None, :]
    return Image.fromarray((colour * shading[..., None]).clip(0, 255).astype(np.uint8))


CATALOGUE = Look(COLOURS, standing, backdrop)


def sample_catalogue_person(rng: np.random.Generator) -> Attributes:
    """Sample a person of the domain: not reserved, and without the values that nobody wears."""
    while True:
        person = sample_unreserved(rng)
        if not any(person[name] in values for name, values in WORN_BY_NOBODY.items()):
            return person


def catalogue_caption(shown: Mapping[str, str], rng: np.random.Generator) -> str:
    """Write a short caption of what a picture shows, such as "a woman with long blond hair, striped red sweater".

    It states the gender and one to three groups of attributes (clothes, hair, hat, bag), of each all that it states at all.
    """
    words = {name: SYNONYMS[name][value][0] for name, value in shown.items() if SYNONYMS[name].get(value)}
    gender = words.get("gender", "person")
    subject = _SUBJECTS[int(rng.integers(len(_SUBJECTS)))].replace("{a}", "a").replace("{gender}", gender)
    possible = [group for group, names in _GROUPS.items() if names[-1] in words]
    count = min(len(possible), 1 + int(rng.integers(_MOST_GROUPS)))
    chosen = [possible[int(place)] for place in rng.permutation(len(possible))[:count]]
    phrases = []
    for group in chosen:
        phrase = " ".join(words[name] for name in _GROUPS[group] if name in words)
        phrases.append(f"{phrase} hair" if group == "hair" else phrase)
    return f"{subject} with {', '.join(phrases)}" if phrases else subject


def catalogue_words() -> tuple[str, ...]:
    """Return every word of these captions, sorted."""
    fixed = {"a", "photo", "picture", "of", "with", "hair", "person"}
    stated = {"gender", *(name for names in _GROUPS.values() for name in names)}
    used = {
        words[0]
        for name in stated
        for value, words in SYNONYMS[name].items()
        if value not in WORN_BY_NOBODY.get(name, ())
    }
    return tuple(sorted(fixed | used))
