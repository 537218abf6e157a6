"""Noise that does not average out: a confusion that is the same in all captions of a person.

The noise of `caption_noise.py` is drawn for every caption anew, so over the captions of a person the truth has the majority, and a
model that believes the majority is right. A captioning model also errs with a system: it tells navy as black whenever it sees that
person, or sees a bag in a shadow of the coat. Then the majority is wrong, and only other people show that the word means something
else. Who is confused depends on the seed and the identity alone.
"""

from collections.abc import Mapping
from dataclasses import field

from components.errors import ParameterError
from components.persons.drawn.attributes import COLOURS
from components.persons.drawn.caption_noise import NOISY_ATTRIBUTES
from components.settings import Fraction, settings
from components.training.randomness import numpy_generator

BAG = {"bag": "backpack", "bag_colour": "black"}
"""The bag that is invented: the same for everybody, as a habit of the captioning model."""


@settings
class Confusion:
    """A confusion, and the part of the people whose captions have it.

    Attributes:
        share: of the people; who it is differs with the seed.
        colours: true colour -> colour that is told in its place, in whatever they wear or carry (not in hair).
        invented_bag: whether those who carry nothing are told to carry a black backpack.
    """

    share: Fraction = 0.5
    colours: Mapping[str, str] = field(default_factory=dict)
    invented_bag: bool = False

    def __post_init__(self) -> None:
        if unknown := [name for pair in self.colours.items() for name in pair if name not in COLOURS]:
            raise ParameterError(f"colours: {unknown[0]} is not one of {', '.join(COLOURS)}")

    def concerns(self, identity: int, seed: int) -> bool:
        """Return whether the captions of this person are confused."""
        return bool(numpy_generator(seed, "confusion", identity).random() < self.share)

    def falsify(self, stated: Mapping[str, str]) -> tuple[dict[str, str], frozenset[str]]:
        """Return what a confused caption states in place of `stated`, and the names of the attributes that are now false."""
        told = {name: self.colours.get(value, value) for name, value in stated.items() if _is_colour(name)}
        false = {name for name, value in told.items() if value != stated[name]}
        if self.invented_bag and stated.get("bag") == "none":
            told |= BAG
            false |= set(BAG)
        return {**stated, **told}, frozenset(false)


def _is_colour(name: str) -> bool:
    return name in NOISY_ATTRIBUTES and name.endswith("_colour") and name != "hair_colour"
