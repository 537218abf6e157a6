"""Draw a pedestrian, and determine which attributes the picture shows.

    identity --pose, framing--> figure --scene, light, lens, sensor--> pixels
                                   |
                                   +--> pixels per part --> attributes shown

An attribute is shown when enough pixels of its part are left in the finished picture (`_ENOUGH`), measured on the part layer of the
canvas. So "bag: none" means that no bag is visible; where only a strap is, the attribute is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from components.errors import ParameterError
from components.persons.drawn.attributes import ATTRIBUTES, Attributes
from components.persons.drawn.body import STREET, Palette, Pose, sample_pose
from components.persons.drawn.canvas import Canvas
from components.persons.drawn.config import Degradation, check_size
from components.persons.drawn.degradation import blur, light, sensor_noise
from components.persons.drawn.figure import Figure
from components.persons.drawn.scene import background, occluder, shadow


@dataclass(frozen=True)
class DrawnPicture:
    """`pixels` uint8 (H, W, 3); `shown`: attribute -> value of those that the picture shows (keys of ATTRIBUTES)."""

    pixels: np.ndarray
    shown: Attributes

    def image(self) -> Image.Image:
        """Return a Pillow image."""
        return Image.fromarray(self.pixels)


@dataclass(frozen=True)
class Look:
    """What the pictures of a domain look like, apart from the people: `background(size, clutter, rng)`, `pose(view, rng)`."""

    palette: Palette
    pose: Callable[[str, np.random.Generator], Pose]
    background: Callable[[tuple[int, int], float, np.random.Generator], Image.Image]


STREET_LOOK = Look(STREET, sample_pose, background)
"""Of the drawn set."""


def draw_person(
    identity: Mapping[str, str],
    rng: np.random.Generator,
    *,
    height: int = 64,
    width: int = 32,
    degradation: Degradation | None = None,
    view: str | None = None,
    look: Look = STREET_LOOK,
) -> DrawnPicture:
    """Draw one picture of `identity` (see `sample_identities`); pose, framing and scene come from `rng`.

    `view` is one of ATTRIBUTES["view"], drawn at random when None. Raises ParameterError for a size or view that is not
    allowed.
    """
    check_size(height, width)
    degradation = degradation or Degradation()
    views = ATTRIBUTES["view"]
    if view is None:
        view = views[int(rng.choice(4, p=(0.35, 0.25, 0.2, 0.2)))]
    elif view not in views:
        raise ParameterError(f"view {view!r}: must be one of {', '.join(views)}")

    canvas = Canvas(height, width)
    canvas.put_background(look.background(canvas.colours.size, degradation.clutter, rng))
    spread = degradation.framing
    size = 0.875 * (1.0 - spread * float(rng.uniform(0, 0.1)))
    slack = 1.0 - size
    x = 0.022 * spread * float(rng.uniform(-1, 1))
    top = slack * 0.62 + spread * 0.25 * slack * float(rng.uniform(-1, 1))
    shadow(canvas, size, x, top + 0.985 * size)
    canvas.place(size, (x, top), mirrored=view == "left")
    Figure(identity, look.pose(view, rng), canvas, look.palette).paint()
    canvas.place(1.0, (0.0, 0.0))
    whole = canvas.counts()
    if rng.random() < degradation.occlusion:
        occluder(canvas, rng)
    shown = shown_attributes(identity, view, whole, canvas.counts(), height * width)

    pixels = light(canvas.finish().astype(np.float32), canvas.coverage(), degradation.lighting, rng)
    softened = blur(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), degradation.blur, rng)
    pixels = sensor_noise(np.asarray(softened, dtype=np.float32), degradation.noise, rng)
    return DrawnPicture(pixels.clip(0, 255).round().astype(np.uint8), shown)


# Minimum area (in 1/2048 of the picture: pixels at 64 x 32) of a part that is shown.
_ENOUGH = {"skin": 7, "hair": 10, "hat": 12, "upper": 55, "lower": 26, "shoes": 7, "bag": 14}
_KEPT = 0.6  # minimum fraction of the part that an occluder leaves visible (a hand is enough for skin)
_TRACE = 3  # a smaller area is not visible


def shown_attributes(
    identity: Mapping[str, str], view: str, whole: Mapping[str, float], left: Mapping[str, float], area: int
) -> Attributes:
    """Return what a picture of `identity` shows, from the pixels of each part before (`whole`) and after (`left`) occlusion."""
    unit = area / 2048

    def pixels(counts: Mapping[str, float], part: str) -> float:
        plain = f"{part}_plain"
        return (counts[part] + counts.get(plain, 0.0)) / unit

    def seen(part: str) -> bool:
        after = pixels(left, part)
        return after >= _ENOUGH[part] and (part == "skin" or after >= _KEPT * pixels(whole, part))

    def intact(*parts: str) -> bool:
        return sum(pixels(left, p) for p in parts) >= 0.85 * sum(pixels(whole, p) for p in parts)

    shown: Attributes = {"view": view}
    names: list[str] = []
    if seen("upper"):
        names += ["gender", "build", "upper_kind", "upper_colour", "upper_pattern"]
    if seen("lower"):
        names += ["lower_kind", "lower_colour", "lower_pattern"]
    if seen("skin"):
        names.append("skin")
    if seen("hair"):
        names += ["hair_length", "hair_colour"]
    if seen("shoes"):
        names += ["shoe_kind", "shoe_colour"]
    if seen("hat"):
        names += ["hat", "hat_colour"]
    elif identity["hat"] == "none" and intact("hair"):
        names.append("hat")
    if seen("bag"):
        names += ["bag", "bag_colour"]
    shown.update({name: identity[name] for name in names})
    traces = (whole["bag"] + whole["strap"]) / unit
    if "bag" not in shown and traces < _TRACE and intact("upper", "lower", "skin"):
        shown["bag"] = "none"
    if "bag" in shown and "bag_side" in identity and view in ("front", "back") and shown["bag"] != "none":
        # From the front, the wearer's left is on the viewer's right.
        swap = {"left": "right", "right": "left"}
        shown["bag_side"] = identity["bag_side"] if view == "back" else swap[identity["bag_side"]]
    return {name: shown[name] for name in ATTRIBUTES if name in shown}
