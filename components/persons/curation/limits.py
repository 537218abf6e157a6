"""The settings of the rules of curation: limits on pictures and on the people in them. The defaults are WebPerson's."""

from typing import Annotated

from pydantic import AfterValidator, Field

from components.settings import Count, FromList, settings


def _rising(aspect: tuple[float, float]) -> tuple[float, float]:
    if not 0 < aspect[0] <= aspect[1]:
        raise ValueError("must be two rising numbers above 0, width by height")
    return aspect


Aspect = Annotated[tuple[float, float], FromList, AfterValidator(_rising)]
"""The allowed range of width / height, both ends included."""


@settings
class PersonLimits:
    """What a detected person must show: the confidence above the limit, the visible keypoints (of COCO's 17) at least as many.

    hips: of 2. head: of nose, eyes and ears.
    """

    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.85
    keypoints: Annotated[int, Field(ge=0, le=17)] = 8
    hips: Annotated[int, Field(ge=0, le=2)] = 1
    head: Annotated[int, Field(ge=0, le=5)] = 2


@settings
class Rules(PersonLimits):
    """All limits. `short_side` is in pixels, at least, 0 for every size; an `aspect` of None allows every shape."""

    short_side: Count = 90
    aspect: Aspect | None = (0.25, 0.5)
