"""A head with face, hair and hat, in the coordinates of its figure."""

from collections.abc import Mapping

from components.persons.drawn.body import STREET, Palette, detail, shade
from components.persons.drawn.canvas import Canvas, Point

_HEAD: Point = (0.0, 0.088)
_HEAD_X, _HEAD_Y = 0.058, 0.078


class Head:
    """Painted in two steps, because hair is both behind and in front of the body."""

    def __init__(self, attributes: Mapping[str, str], view: str, canvas: Canvas, palette: Palette = STREET) -> None:
        self.a, self.view, self.canvas, self.palette = attributes, view, canvas, palette
        self.skin = palette.skin[attributes["skin"]]

    def paint_behind(self) -> None:
        """Paint long and medium hair seen from the front, which hangs behind the neck. Call before painting the body."""
        hair, length = self.palette.hair[self.a["hair_colour"]], self.a["hair_length"]
        if length != "short":
            bottom, width = (0.3, 0.095) if length == "long" else (0.185, 0.088)
            self.canvas.polygon(
                [(-0.06, 0.05), (0.06, 0.05), (width, 0.13), (width, bottom), (-width, bottom), (-width, 0.13)],
                hair,
                "hair",
            )

    def paint(self) -> None:
        """Paint the head. Call after painting the body."""
        c, view, (x, y) = self.canvas, self.view, _HEAD
        c.ellipse((x, y), _HEAD_X, _HEAD_Y, self.skin, "skin")
        if view == "front":
            self._face_front()
        elif view != "back":
            c.polygon([(0.05, 0.085), (0.074, 0.105), (0.05, 0.115)], self.skin, "skin")
            c.ellipse((0.033, 0.085), 0.008, 0.011, (24, 20, 20), "face")
        self._hair()
        if self.a["hat"] != "none":
            self._hat()

    def _face_front(self) -> None:
        c = self.canvas
        for side in (-1, 1):
            c.ellipse((side * 0.023, 0.088), 0.0085, 0.011, (24, 20, 20), "face")
        lips = (196, 60, 70) if self.a["gender"] == "woman" else shade(self.skin, 0.6)
        c.line([(-0.015, 0.132), (0.015, 0.132)], 0.01, lips, "face")

    def _hair(self) -> None:
        c, hair, length, view = self.canvas, self.palette.hair[self.a["hair_colour"]], self.a["hair_length"], self.view
        if view == "front":
            c.chord((0.0, 0.088), 0.064, 0.088, 188, 352, hair, "hair")
            if length != "short":
                bottom = 0.285 if length == "long" else 0.175
                for side in (-1, 1):
                    c.polygon(
                        [
                            (side * 0.03, 0.03),
                            (side * 0.066, 0.07),
                            (side * 0.094, bottom),
                            (side * 0.052, bottom),
                            (side * 0.046, 0.1),
                        ],
                        hair,
                        "hair",
                    )
        elif view == "back":
            c.ellipse((0.0, 0.08), 0.064, 0.083, hair, "hair")
            if length == "medium":
                c.polygon([(-0.064, 0.08), (0.064, 0.08), (0.084, 0.185), (-0.084, 0.185)], hair, "hair")
            elif length == "long":
                c.polygon(
                    [(-0.064, 0.08), (0.064, 0.08), (0.092, 0.22), (0.062, 0.345), (-0.062, 0.345), (-0.092, 0.22)],
                    hair,
                    "hair",
                )
        else:
            c.chord((-0.006, 0.084), 0.066, 0.087, 105, 335, hair, "hair")
            if length == "medium":
                c.polygon([(-0.07, 0.07), (0.002, 0.06), (0.004, 0.185), (-0.08, 0.185)], hair, "hair")
            elif length == "long":
                c.polygon(
                    [(-0.07, 0.07), (0.002, 0.06), (-0.012, 0.2), (-0.05, 0.335), (-0.1, 0.32), (-0.092, 0.18)],
                    hair,
                    "hair",
                )

    def _hat(self) -> None:
        c, kind, view, colour = self.canvas, self.a["hat"], self.view, self.palette.cloth[self.a["hat_colour"]]
        tone = detail(colour)
        if kind == "cap":
            c.chord((0.0, 0.07), 0.07, 0.082, 180, 360, colour, "hat")
            if view == "front":
                c.chord((0.0, 0.062), 0.076, 0.03, 0, 180, tone, "hat")
            elif view == "back":
                c.chord((0.0, 0.07), 0.03, 0.03, 180, 360, self.palette.hair[self.a["hair_colour"]], "hair")
            else:
                c.polygon([(0.04, 0.052), (0.142, 0.068), (0.142, 0.082), (0.03, 0.076)], tone, "hat")
        elif kind == "beanie":
            c.chord((0.0, 0.08), 0.073, 0.104, 180, 360, colour, "hat")
            c.ellipse((0.0, -0.022), 0.027, 0.023, tone, "hat")
            c.polygon([(-0.074, 0.052), (0.074, 0.052), (0.073, 0.086), (-0.073, 0.086)], tone, "hat")
        else:
            c.chord((0.0, 0.058), 0.066, 0.078, 180, 360, colour, "hat")
            c.polygon([(-0.066, 0.036), (0.066, 0.036), (0.067, 0.054), (-0.067, 0.054)], tone, "hat")
            c.ellipse((0.0, 0.064), 0.142, 0.025, colour, "hat")
