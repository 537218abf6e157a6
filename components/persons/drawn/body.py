"""Colours, poses and proportions of the drawn people."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from components.persons.drawn.canvas import Colour

PALETTE: dict[str, Colour] = {
    "black": (30, 30, 34),
    "white": (244, 244, 242),
    "gray": (136, 139, 144),
    "blue": (38, 84, 196),
    "red": (208, 32, 38),
    "green": (34, 142, 62),
    "yellow": (248, 208, 40),
    "brown": (122, 74, 38),
    "pink": (248, 150, 188),
    "purple": (122, 52, 164),
}
# The second colour of a pattern: a lighter or darker tone, never a colour with another name.
PATTERN_TONE: dict[str, Colour] = {
    "black": (200, 200, 204),
    "white": (112, 116, 130),
    "gray": (58, 60, 64),
    "blue": (186, 212, 252),
    "red": (252, 206, 200),
    "green": (192, 238, 196),
    "yellow": (158, 112, 8),
    "brown": (228, 198, 158),
    "pink": (196, 48, 112),
    "purple": (226, 196, 246),
}
SKIN_TONE: dict[str, Colour] = {"pale": (246, 214, 190), "tan": (208, 152, 106), "dark": (108, 68, 44)}
HAIR_TONE: dict[str, Colour] = {
    "black": (26, 23, 23),
    "brown": (92, 56, 28),
    "blond": (232, 196, 108),
    "ginger": (196, 88, 30),
    "silver": (192, 194, 200),
}


@dataclass(frozen=True)
class Palette:
    """The colours of a domain of drawn people: of clothes, of the second colour of their patterns, of skin and of hair."""

    cloth: Mapping[str, Colour]
    pattern: Mapping[str, Colour]
    skin: Mapping[str, Colour]
    hair: Mapping[str, Colour]


STREET = Palette(PALETTE, PATTERN_TONE, SKIN_TONE, HAIR_TONE)


@dataclass(frozen=True)
class Pose:
    """The pose of a figure: `view` as in ATTRIBUTES, `stride` -1 to 1, `swing` of the arms -1 to 1, `sway` sideways."""

    view: str
    stride: float
    swing: float
    sway: float
    pattern_shift: float

    @property
    def sideways(self) -> bool:
        return self.view in ("left", "right")


def sample_pose(view: str, rng: np.random.Generator) -> Pose:
    """Sample a walking or standing pose for a view."""
    stride = (
        float(rng.uniform(0.25, 1.0) * rng.choice([-1, 1])) if rng.random() < 0.75 else float(rng.uniform(-0.2, 0.2))
    )
    swing = float(np.clip(-stride + rng.normal(0, 0.25), -1, 1))
    return Pose(view, stride, swing, float(rng.uniform(-1, 1)), float(rng.random()))


@dataclass(frozen=True)
class Body:
    """Half widths of the body at shoulders, waist and hips, and the width of limbs."""

    shoulder: float
    waist: float
    hip: float
    limb: float


def proportions(attributes: Mapping[str, str], sideways: bool) -> Body:
    """Return the body of a person as seen from the front or back, or from the side."""
    man = attributes["gender"] == "man"
    breadth = {"slim": 0.76, "medium": 1.0, "heavy": 1.36}[attributes["build"]]
    belly = {"slim": 0.80, "medium": 1.0, "heavy": 1.60}[attributes["build"]]
    if sideways:
        return Body(0.072 * breadth, (0.072 if man else 0.060) * belly, (0.070 if man else 0.084) * breadth, breadth)
    if man:
        return Body(0.134 * breadth, 0.104 * belly, 0.098 * breadth, breadth)
    return Body(0.102 * breadth, 0.070 * belly, 0.106 * breadth, 0.86 * breadth)


def shade(colour: Colour, factor: float) -> Colour:
    """Darken a colour by a factor below 1, or lighten it towards white by one above 1."""
    if factor <= 1:
        return tuple(round(c * factor) for c in colour)  # type: ignore[return-value]
    return tuple(round(c + (255 - c) * (factor - 1)) for c in colour)  # type: ignore[return-value]


def detail(colour: Colour) -> Colour:
    """Return a tone that is visible on `colour`, for hems, pockets and zips."""
    return shade(colour, 1.28) if sum(colour) < 200 else shade(colour, 0.72)
