"""A drawing surface with two layers: colours, and the part of the person that each pixel belongs to.

Everything is drawn on both layers, supersampled, so that what a picture *shows* can be measured: a handbag behind the legs, hair
under a beanie and shoes behind a box have no pixels in the part layer.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageChops, ImageDraw

Point = tuple[float, float]
Colour = tuple[int, int, int]

PARTS = (
    *("background", "skin", "hair", "hat", "upper", "lower", "shoes", "bag", "strap", "face", "occluder"),
    *("upper_plain", "lower_plain"),  # parts of a garment without its pattern: hems, zips, collars
)
CODE = {part: code for code, part in enumerate(PARTS)}
_ASPECT = 0.5  # figures are designed on a picture half as wide as high; other shapes squash it


class Canvas:
    """A picture being drawn.

    Coordinates are in units of the picture's height: x from -1/4 to 1/4 (0 is the middle), y from 0 (top) to 1.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.scale = max(2, -(-224 // height)) if height < 224 else 2
        size = (width * self.scale, height * self.scale)
        self.colours = Image.new("RGB", size)
        self.parts = Image.new("L", size)
        self._draw = ImageDraw.Draw(self.colours)
        self._mark = ImageDraw.Draw(self.parts)
        self._sx, self._sy = size[0] / _ASPECT, float(size[1])
        self.place(1.0, (0.0, 0.0))

    def put_background(self, picture: Image.Image) -> None:
        """Cover the colours with `picture` (of the size of `colours`)."""
        self.colours.paste(picture, (0, 0))

    def place(self, size: float, origin: Point, *, mirrored: bool = False) -> None:
        """Set the transform of coordinates: multiply by `size`, mirror about x = 0 if asked, move to `origin`."""
        self._size, self._origin, self._mirrored = size, origin, mirrored

    def pixels(self, points: Sequence[Point]) -> list[Point]:
        """Transform coordinates to supersampled pixels."""
        sign = -self._size if self._mirrored else self._size
        ox, oy = self._origin
        return [((ox + x * sign + _ASPECT / 2) * self._sx, (oy + y * self._size) * self._sy) for x, y in points]

    def _box(self, centre: Point, rx: float, ry: float) -> list[Point]:
        (x1, y1), (x2, y2) = self.pixels([(centre[0] - rx, centre[1] - ry), (centre[0] + rx, centre[1] + ry)])
        return [(min(x1, x2), y1), (max(x1, x2), y2)]

    def polygon(self, points: Sequence[Point], colour: Colour, part: str) -> None:
        """Draw a filled polygon."""
        corners = self.pixels(points)
        self._draw.polygon(corners, fill=colour)
        self._mark.polygon(corners, fill=CODE[part])

    def ellipse(self, centre: Point, rx: float, ry: float, colour: Colour, part: str) -> None:
        """Draw a filled ellipse."""
        box = self._box(centre, rx, ry)
        self._draw.ellipse(box, fill=colour)
        self._mark.ellipse(box, fill=CODE[part])

    def chord(self, centre: Point, rx: float, ry: float, start: float, end: float, colour: Colour, part: str) -> None:
        """Draw the part of an ellipse between two angles (degrees, clockwise from the right), closed by a line."""
        box = self._box(centre, rx, ry)
        if self._mirrored:
            start, end = 180 - end, 180 - start
        self._draw.chord(box, start, end, fill=colour)
        self._mark.chord(box, start, end, fill=CODE[part])

    def limb(self, points: Sequence[Point], widths: Sequence[float], colour: Colour, part: str) -> None:
        """Draw a tapering, round-jointed tube through `points`; `widths` are full widths at them."""
        for (start, end), (first, last) in zip(pairwise(points), pairwise(widths), strict=True):
            direction = np.array(end) - np.array(start)
            length = float(np.hypot(*direction)) or 1.0
            nx, ny = -direction[1] / length, direction[0] / length
            self.polygon(
                [
                    (start[0] + nx * first / 2, start[1] + ny * first / 2),
                    (end[0] + nx * last / 2, end[1] + ny * last / 2),
                    (end[0] - nx * last / 2, end[1] - ny * last / 2),
                    (start[0] - nx * first / 2, start[1] - ny * first / 2),
                ],
                colour,
                part,
            )
        for point, width in zip(points[:-1], widths[:-1], strict=True):
            self.ellipse(point, width / 2, width / 2, colour, part)

    def line(self, points: Sequence[Point], width: float, colour: Colour, part: str) -> None:
        """Draw a thin line; `width` in units of the picture's height."""
        corners = self.pixels(points)
        stroke = max(1, round(width * self._size * self._sy))
        self._draw.line(corners, fill=colour, width=stroke, joint="curve")
        self._mark.line(corners, fill=CODE[part], width=stroke)

    def pattern(self, part: str, kind: str, colour: Colour, cell: float, offset: Point) -> None:
        """Draw a pattern of `colour` over all pixels of `part`; `cell` is its period, `offset` its origin."""
        mask = self.parts.point([255 if code == CODE[part] else 0 for code in range(256)])
        period_y = max(4, round(cell * self._size * self._sy))
        period_x = max(4, round(period_y * self._sx / self._sy))
        tile = _pattern_mask(kind, self.parts.size, period_y, period_x)
        x, y = self.pixels([offset])[0]
        left, top = round(-x) % (2 * period_x), round(-y) % (2 * period_y)
        tile = tile.crop((left, top, left + self.parts.width, top + self.parts.height))
        self.colours.paste(colour, (0, 0), ImageChops.multiply(mask, tile))

    def count(self, part: str) -> float:
        """Return the pixels of the finished picture (not supersampled) that belong to `part`."""
        return self.parts.histogram()[CODE[part]] / self.scale**2

    def counts(self) -> dict[str, float]:
        """Return the pixels of the finished picture per part."""
        histogram = self.parts.histogram()
        return {part: histogram[code] / self.scale**2 for part, code in CODE.items()}

    def finish(self) -> np.ndarray:
        """Return the picture, antialiased: uint8 (height, width, 3)."""
        return np.asarray(self.colours.reduce(self.scale))

    def coverage(self) -> np.ndarray:
        """Return the fraction of each pixel that the person covers: float32 (height, width)."""
        outside = (CODE["background"], CODE["occluder"])
        mask = self.parts.point([0 if code in outside else 255 for code in range(256)])
        return np.asarray(mask.reduce(self.scale), dtype=np.float32) / 255.0


@lru_cache(maxsize=64)
def _pattern_mask(kind: str, size: tuple[int, int], period_y: int, period_x: int) -> Image.Image:
    """Mask of a pattern's second colour: an L picture of 0 and 255, two periods larger than `size` for shifting."""
    y, x = np.mgrid[0 : size[1] + 2 * period_y, 0 : size[0] + 2 * period_x]
    fy, fx = (y % period_y) / period_y, (x % period_x) / period_x
    if kind == "striped":
        on = fy < 0.4
    elif kind == "checked":
        on = (fy < 0.5) ^ (fx < 0.5)
    elif kind == "dotted":
        row = (y // period_y) % 2
        fx = ((x + row * period_x / 2) % period_x) / period_x
        on = (fy - 0.5) ** 2 + (fx - 0.5) ** 2 < 0.33**2
    else:
        raise ValueError(f"no pattern {kind!r}")
    return Image.fromarray((on * 255).astype(np.uint8))
