"""People drawn afresh for training: person `n` of a stream is a function of the seed, the stream's name and n.

So a training that takes the next numbers at every step sees no picture twice, keeps nothing, and can be resumed at any step with
the same pictures. Only EVALUATED_PEOPLE are of reserved combinations (reserved.py), and all of them are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from components.errors import ParameterError
from components.persons.drawn.attributes import Attributes
from components.persons.drawn.captions import short_caption
from components.persons.drawn.catalogue import CATALOGUE, catalogue_caption, sample_catalogue_person
from components.persons.drawn.config import PRESETS, Preset, check_size
from components.persons.drawn.drawing import STREET_LOOK, Look, draw_person
from components.persons.drawn.reserved import sample_reserved, sample_unreserved
from components.training.randomness import numpy_generator


@dataclass(frozen=True)
class Domain:
    """Who is drawn, how it looks, and what is said of it."""

    look: Look
    person: Callable[[np.random.Generator], Attributes]
    caption: Callable[[Mapping[str, str], np.random.Generator], str]


STREET_PEOPLE = Domain(STREET_LOOK, sample_unreserved, short_caption)
"""As the drawn set, with its short captions, for training."""
EVALUATED_PEOPLE = Domain(STREET_LOOK, sample_reserved, short_caption)
"""For evaluation: they look like STREET_PEOPLE, and no training has seen one."""
CATALOGUE_PEOPLE = Domain(CATALOGUE, sample_catalogue_person, catalogue_caption)


@dataclass(frozen=True)
class FreshPerson:
    """A picture uint8 (H, W, 3), the attributes that it shows, and a caption of it; `identity` is who it is."""

    pixels: np.ndarray
    shown: Attributes
    caption: str
    identity: Attributes


class FreshPeople:
    """The stream of people `name` under `seed`; `presets` weighs how their pictures are degraded.

    Raises ParameterError for a size that cannot be drawn, or for weights without a sum.
    """

    def __init__(
        self,
        seed: int,
        name: str,
        presets: Mapping[Preset, float],
        *,
        height: int,
        width: int,
        domain: Domain = STREET_PEOPLE,
    ) -> None:
        check_size(height, width)
        total = sum(presets.values())
        if not total > 0:
            raise ParameterError("presets: give at least one of them a weight above 0")
        self.seed, self.name, self.height, self.width, self.domain = seed, name, height, width, domain
        self._presets = list(presets)
        self._weights = [presets[preset] / total for preset in self._presets]

    def person(self, number: int) -> FreshPerson:
        """Draw the person `number`, from 0, in a view of its own."""
        rng = numpy_generator(self.seed, self.name, number)
        preset = self._presets[int(rng.choice(len(self._presets), p=self._weights))]
        identity = self.domain.person(rng)
        picture = draw_person(
            identity, rng, height=self.height, width=self.width, degradation=PRESETS[preset], look=self.domain.look
        )
        return FreshPerson(picture.pixels, picture.shown, self.domain.caption(picture.shown, rng), identity)

    def people(self, numbers: Sequence[int]) -> list[FreshPerson]:
        """Draw several."""
        return [self.person(number) for number in numbers]


def stacked(people: Sequence[FreshPerson]) -> Tensor:
    """Return their pictures, uint8 (N, 3, H, W)."""
    return torch.from_numpy(np.stack([person.pixels for person in people])).movedim(-1, 1).contiguous()
