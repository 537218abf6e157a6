"""Rules by which a picture shows a person well enough: those of WebPerson (GA-DMS section 3 and figure 1).

Pure functions that return the reason why a picture is dropped, or None. The text and the data card of the paper say "at least"
where its figure prints "more than": here it is "at least", and "above" for the confidence, on which both agree.
"""

from dataclasses import dataclass

from components.errors import ParameterError
from components.persons.curation.keypoints import HEAD, HIPS, KEYPOINTS, Detection

SMALL, SHAPE = "too small", "not the shape of a person"
NOBODY, UNSURE = "no person found", "person not sure enough"
FEW_KEYPOINTS, NO_HIP, NO_HEAD = "too few keypoints", "no hip seen", "head not seen"
REASONS = {
    SMALL: "the short side has too few pixels",
    SHAPE: "width by height is outside the allowed range",
    NOBODY: "the detector found nobody",
    UNSURE: "the detector's confidence is too low",
    FEW_KEYPOINTS: "too few of COCO's 17 keypoints are visible",
    NO_HIP: "too few hips are visible: half a person",
    NO_HEAD: "too few of nose, eyes and ears are visible",
}
"""Every reason of a rule, with its explanation."""


@dataclass(frozen=True)
class Rules:
    """The limits; the defaults are WebPerson's. An `aspect` of None lets every shape pass, a `short_side` of 0 every size."""

    short_side: int = 90  # pixels, at least
    aspect: tuple[float, float] | None = (0.25, 0.5)  # width / height, both ends allowed
    confidence: float = 0.85  # above
    keypoints: int = 8  # visible, at least
    hips: int = 1
    head: int = 2  # of nose, eyes, ears

    def __post_init__(self) -> None:
        if self.aspect is not None and not 0 < self.aspect[0] <= self.aspect[1]:
            raise ParameterError(f"aspect = {list(self.aspect)}: must be two rising numbers above 0, width by height")
        for name, most in (("keypoints", len(KEYPOINTS)), ("hips", len(HIPS)), ("head", len(HEAD))):
            if not 0 <= getattr(self, name) <= most:
                raise ParameterError(f"{name} = {getattr(self, name)}: must lie between 0 and {most}")
        if not 0 <= self.confidence < 1:
            raise ParameterError(f"confidence = {self.confidence}: must lie in [0, 1)")


def size_reason(width: int, height: int, rules: Rules) -> str | None:
    """Return why a picture, or a person's box, of this size in pixels is dropped, or None."""
    if min(width, height) < max(1, rules.short_side):
        return SMALL
    if rules.aspect is not None and not rules.aspect[0] <= width / height <= rules.aspect[1]:
        return SHAPE
    return None


def person_reason(person: Detection | None, rules: Rules) -> str | None:
    """Return why a detected person (None: nobody was detected) is dropped, or None."""
    if person is None:
        return NOBODY
    if not person.confidence > rules.confidence:
        return UNSURE
    if sum(person.visible) < rules.keypoints:
        return FEW_KEYPOINTS
    if sum(person.visible[i] for i in HIPS) < rules.hips:
        return NO_HIP
    if sum(person.visible[i] for i in HEAD) < rules.head:
        return NO_HEAD
    return None
