"""Sections on people: their source, and the curation of generated ones."""

from dataclasses import KW_ONLY
from typing import Annotated, Literal

from pydantic import Field, field_validator

from components.persons.curation.limits import Aspect, PersonLimits
from components.persons.drawn.config import PicturesPerIdentity, Preset
from components.settings import Count, Fraction, Positive, Rate, Sha256, settings
from components.training.config import TrainingConfig
from pipelines.schema.section import Section


class Pictures(Section):
    """The size at which people are drawn, generated and searched, in pixels."""

    height: Annotated[int, Field(ge=32, multiple_of=16)]
    width: Annotated[int, Field(ge=16, multiple_of=8)]


class Prepare(Section):
    """The source of the people: `drawn` draws them; the others are read from data/raw.

    `reserve`: val and test people are combinations of attributes that pre-training never draws.
    """

    source: str
    identities: dict[Literal["train", "val", "test"], Positive]
    pictures_per_identity: PicturesPerIdentity
    preset: Preset
    caption_noise: Fraction
    neighbours: Fraction
    max_bad_fraction: Fraction
    reserve: bool = False

    @field_validator("identities")
    @classmethod
    def _every_split(cls, identities: dict[str, int]) -> dict[str, int]:
        if missing := {"train", "val", "test"} - set(identities):
            raise ValueError(f"{', '.join(sorted(missing))} missing")
        return identities


@settings
class PersonDetector(PersonLimits):
    """Weights of torchvision's keypoint R-CNN, and what a person it finds must show."""

    _: KW_ONLY
    weights: str
    sha256: Sha256


class Curate(Section):
    """Curation of generated people: the rules, the sharpness, and of the rest the best matches of picture and captions.

    `aspect` is a range of width / height; null, and a `short_side` of 0, allow all. Without a detector nobody is looked for.
    """

    quality_share: Fraction
    keep_fraction: Rate
    short_side: Count = 0
    aspect: Aspect | None = None
    detector: PersonDetector | None = None
    near_duplicates: Annotated[int, Field(ge=0, le=15)] | None = None
    matcher: TrainingConfig
