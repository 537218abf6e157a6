"""Pictures of another shape or of fewer pixels than they are brought to: counted, and printed."""

from collections.abc import Sequence

from components.persons.pixels import Fit

SAME_SHAPE = 1.02
"""The ratio of two aspect ratios up to which shapes count as the same: sides are whole pixels."""


def count_unlike(sizes: Sequence[tuple[int, int]], height: int, width: int, fit: Fit) -> dict[str, int]:
    """Return how many pictures are of another shape than height x width, and how many smaller; print it where there are any.

    sizes: (width, height) of each.
    """
    ratios = [own * height / (across * width) for own, across in sizes]
    reshaped = sum(not 1 / SAME_SHAPE <= ratio <= SAME_SHAPE for ratio in ratios)
    enlarged = sum(own < width or across < height for own, across in sizes)
    what = {"squash": "squashed to", "crop": "cropped to"}[fit]
    for number, done in ((reshaped, f"of another shape and are {what}"), (enlarged, "smaller and are enlarged to")):
        if number:
            print(f"{number:,} of {len(sizes):,} pictures are {done} {height} x {width}", flush=True)
    return {"reshaped": reshaped, "enlarged": enlarged}
