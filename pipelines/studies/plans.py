"""What the YAML files of all studies have in common: what is asked, what is claimed beforehand, and what a cell costs."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from components.settings import AboveZero, Count, NotNegative
from pipelines.schema.section import Section


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("a value is listed twice")
    return values


Distinct = (Field(min_length=1), AfterValidator(_distinct))
"""For `Annotated`: a list of distinct values, at least one."""
Seeds = Annotated[list[Count], *Distinct]
Name = Annotated[str, Field(pattern=r"^[\w.+-]+$")]
"""A part of a cell's key."""


class StudyPlan(Section):
    """The keys that `studies/<name>.yaml` may have whatever is measured.

    Attributes:
        kind: the module of `pipelines/studies` that defines the cells; None is the one of the study's name.
        question, claim, controls, scope: for the reader: a question, one sentence that is claimed beforehand, what the comparison
            is protected by, and what the result holds for.
        labels: arm or condition -> its words on the page.
        cost: processor seconds of one cell, by the function that measures it; an estimate from a measured one.
    """

    kind: str | None = None
    question: str | None = None
    claim: str | None = None
    controls: tuple[str, ...] = Field((), strict=False)
    scope: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    cost: dict[str, AboveZero] = Field(default_factory=dict)


class PhaseSeeds(Section):
    """The seeds that look for differences, and fresh ones that confirm the contrasts named beforehand."""

    screen: Seeds
    confirm: Seeds

    @model_validator(mode="after")
    def _fresh(self) -> Self:
        require_fresh(self.screen, self.confirm)
        return self

    def by_phase(self) -> dict[Literal["screen", "confirm"], list[int]]:
        """Return the seeds of each phase that contrasts are measured in."""
        return {"screen": self.screen, "confirm": self.confirm}


def require_fresh(screen: Collection[int], confirm: Collection[int]) -> None:
    """Raise ValueError for a seed of `confirm` that has screened."""
    if known := sorted(set(screen) & set(confirm)):
        raise ValueError(f"confirm: seed {known[0]} has screened already: contrasts are confirmed on fresh seeds")


class Contrast(Section):
    """A difference between two arms, named before it is measured.

    Attributes:
        title: of a few words, for the page.
        arm, minus: the two arms.
        at: the conditions under which they are compared, each a contrast of its own.
        expect: what is claimed: that `arm` is higher (`more`) or lower (`less`) by more than `margin`, or within `margin` of the
            other (`level`), by the whole interval. None asks without a claim.
        margin: in the unit of the results.
    """

    title: str
    arm: str
    minus: str
    at: Annotated[list[str], *Distinct]
    expect: Literal["more", "less", "level"] | None = None
    margin: NotNegative = 0.0

    @model_validator(mode="after")
    def _level_within(self) -> Self:
        if self.expect == "level" and not self.margin:
            raise ValueError("margin: `level` needs one above 0: within how many points")
        if self.arm == self.minus:
            raise ValueError(f"minus: {self.minus} is compared with itself")
        return self


def require_known(contrasts: list[Contrast], arms: list[str], conditions: list[str]) -> None:
    """Raise ValueError for a contrast of an arm or a condition that the plan does not have."""
    for place, contrast in enumerate(contrasts):
        for key, name, known in (
            ("arm", contrast.arm, arms),
            ("minus", contrast.minus, arms),
            *(("at", name, conditions) for name in contrast.at),
        ):
            if name not in known:
                raise ValueError(f"contrasts.{place}.{key}: {name} is not one of {', '.join(known)}")


def kind_of(document: Any, file: Path) -> str:
    """Return the module of `pipelines/studies` that a study's YAML document is for."""
    named = document.get("kind") if isinstance(document, dict) else None
    return named if isinstance(named, str) else file.stem
