"""Rules by which a picture shows a person well enough: those of WebPerson (GA-DMS section 3 and figure 1).

Pure functions that return the reason why a picture is dropped, or None. The text and the data card of the paper say "at least"
where its figure prints "more than": here it is "at least", and "above" for the confidence, on which both agree.
"""

from components.persons.curation.keypoints import HEAD, HIPS, Detection
from components.persons.curation.limits import Rules
from components.persons.pixels import MIN_SIDE

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


def size_reason(width: int, height: int, rules: Rules) -> str | None:
    """Return why a picture, or a person's box, of this size in pixels is dropped, or None."""
    if min(width, height) < max(MIN_SIDE, rules.short_side):
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
