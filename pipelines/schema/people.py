"""Sections on people: where they come from, and which generated ones are kept."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from components.settings import Count, Fraction, Positive, Rate
from components.training.config import TrainingConfig
from pipelines.schema.section import Section

if TYPE_CHECKING:
    from components.persons.curation.rules import Rules


class Pictures(Section):
    """The size at which people are drawn, generated and searched, in pixels."""

    height: Annotated[int, Field(ge=32, multiple_of=16)]
    width: Annotated[int, Field(ge=16, multiple_of=8)]


class Prepare(Section):
    """Where the people come from. `drawn` makes them; the others are read from data/raw."""

    source: str
    identities: dict[Literal["train", "val", "test"], Positive]
    pictures_per_identity: Annotated[int, Field(ge=4)]
    preset: Literal["clean", "cluttered", "occluded"]
    caption_noise: Fraction
    neighbours: Fraction
    max_bad_fraction: Fraction

    @field_validator("identities")
    @classmethod
    def _every_split(cls, identities: dict[str, int]) -> dict[str, int]:
        if missing := {"train", "val", "test"} - set(identities):
            raise ValueError(f"{', '.join(sorted(missing))} missing")
        return identities


class PersonDetector(Section):
    """Weights of torchvision's keypoint R-CNN, and what a person it finds must show. The limits are WebPerson's."""

    weights: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.85
    keypoints: Annotated[int, Field(ge=0, le=17)] = 8
    hips: Annotated[int, Field(ge=0, le=2)] = 1
    head: Annotated[int, Field(ge=0, le=5)] = 2


class Curate(Section):
    """Which generated people are kept: those the rules allow, that are sharp, and of these the best matches of their captions.

    `aspect` is a range of width / height; null, and a `short_side` of 0, allow all. Without a detector nobody is looked for.
    """

    quality_share: Fraction
    keep_fraction: Rate
    short_side: Count = 0
    aspect: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    detector: PersonDetector | None = None
    near_duplicates: Annotated[int, Field(ge=0, le=15)] | None = None
    matcher: TrainingConfig

    @field_validator("aspect")
    @classmethod
    def _rising(cls, aspect: list[float] | None) -> list[float] | None:
        if aspect is not None and not 0 < aspect[0] <= aspect[1]:
            raise ValueError("must be two rising numbers above 0, width by height")
        return aspect

    def rules(self) -> "Rules":
        """As the rules of curation take them."""
        from components.persons.curation.rules import Rules

        aspect = (self.aspect[0], self.aspect[1]) if self.aspect else None
        limits = self.detector.model_dump(exclude={"weights", "sha256"}) if self.detector else {}
        return Rules(short_side=self.short_side, aspect=aspect, **limits)
