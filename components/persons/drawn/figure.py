"""A pedestrian as polygons: body, clothes, hair, hat and bag, seen from the front, the back or the side.

Coordinates: x = 0 is the middle of the figure, y = 0 the top of its head, y = 1 the ground; side views face +x (the canvas mirrors
them). Parts are painted from the farthest to the nearest.
"""

from collections.abc import Mapping

from components.persons.drawn.body import STREET, Palette, Pose, detail, proportions, shade
from components.persons.drawn.canvas import Canvas, Point
from components.persons.drawn.head import Head


class Figure:
    """One person in one pose, painted on a canvas by `paint`."""

    def __init__(self, attributes: Mapping[str, str], pose: Pose, canvas: Canvas, palette: Palette = STREET) -> None:
        self.a, self.pose, self.canvas, self.palette = attributes, pose, canvas, palette
        self.body = proportions(attributes, pose.sideways)
        self.head = Head(attributes, pose.view, canvas, palette)
        self.skin = palette.skin[attributes["skin"]]
        self.upper = palette.cloth[attributes["upper_colour"]]
        self.lower = palette.cloth[attributes["lower_colour"]]
        self.hem = {"shirt": 0.505, "sweater": 0.52, "hoodie": 0.53, "jacket": 0.475, "coat": 0.66}[
            attributes["upper_kind"]
        ]
        # +1 where the wearer's bag side is on the viewer's right. Seen from behind, the wearer's right is the viewer's.
        side = 1 if attributes.get("bag_side") == "right" else -1
        self.bag_x = side if pose.view == "back" else -side
        # In a side view, is the bag on the near side? Facing left, the wearer's left is towards us.
        self.bag_near = attributes.get("bag_side") == pose.view

    def paint(self) -> None:
        """Paint the whole figure, farthest parts first."""
        if self.pose.sideways:
            self._arm_side(near=False)
            if not self.bag_near:
                self._carried_bag()
            self._legs()
            if self.a["bag"] == "backpack":
                self._backpack()
            self._torso()
        else:
            if self.pose.view == "front":
                self.head.paint_behind()
                if self.a["bag"] == "backpack":
                    self._backpack()
            self._legs()
            self._arms_frontal()
            self._torso()
        self._patterns()
        self._straps()
        if self.pose.view == "back" and self.a["bag"] == "backpack":
            self._backpack()
        if self.pose.sideways:
            self.head.paint()
            self._arm_side(near=True)
            self._patterns()
            if self.bag_near:
                self._carried_bag()
        else:
            self.head.paint()
            self._carried_bag()

    # -- clothes ---------------------------------------------------------------------------------------------------

    def _patterns(self) -> None:
        shift = (0.0, 0.19 + 0.05 * self.pose.pattern_shift)
        for garment, cell in (("upper", 0.1), ("lower", 0.1)):
            kind = self.a[f"{garment}_pattern"]
            if kind != "plain":
                size = {"striped": cell, "checked": cell * 1.02, "dotted": cell * 0.8}[kind]
                self.canvas.pattern(garment, kind, self.palette.pattern[self.a[f"{garment}_colour"]], size, shift)

    def _legs(self) -> None:
        for foot in (-1, 1):
            self._leg(foot)
        if self.a["lower_kind"] == "skirt":
            b, stride = self.body, abs(self.pose.stride)
            flare = 0.045 + (0.03 * stride if self.pose.sideways else 0.0)
            top = b.waist * 0.98
            points = [(-top, 0.43), (top, 0.43), (b.hip * 1.08, 0.53), (b.hip + flare, 0.735), (-b.hip - flare, 0.735)]
            self.canvas.polygon([*points, (-b.hip * 1.08, 0.53)], self.lower, "lower")
            self.canvas.line(
                [(-b.hip - flare, 0.733), (b.hip + flare, 0.733)], 0.008, detail(self.lower), "lower_plain"
            )
        else:
            b = self.body
            self.canvas.polygon(
                [
                    (-b.waist, 0.43),
                    (b.waist, 0.43),
                    (b.hip, 0.52),
                    (b.hip * 0.8, 0.57),
                    (-b.hip * 0.8, 0.57),
                    (-b.hip, 0.52),
                ],
                self.lower,
                "lower",
            )

    def _leg(self, foot: int) -> None:
        pose, b, kind = self.pose, self.body, self.a["lower_kind"]
        if pose.sideways:
            reach = foot * pose.stride
            hip, knee = (0.0, 0.52), (0.075 * reach + 0.012, 0.72)
            ankle = (0.135 * reach - 0.01, 0.945 - 0.03 * max(0.0, -reach))
        else:
            lift = 0.028 * max(0.0, foot * pose.stride)
            hip = (foot * b.hip * 0.52, 0.52)
            ankle = (foot * (b.hip * 0.56 + 0.012) + 0.006 * pose.sway, 0.945 - lift)
            knee = (foot * b.hip * 0.56 + 0.004 * pose.sway, 0.73 - lift / 2)
        far = 0.86 if pose.sideways and foot < 0 else 1.0 if pose.sideways else 0.94 + 0.06 * (foot > 0)
        limb = b.limb
        self.canvas.limb([hip, knee, ankle], [0.084 * limb, 0.062 * limb, 0.042 * limb], shade(self.skin, far), "skin")
        self._shoe(ankle, far, trousers=False)
        cloth = shade(self.lower, far)
        if kind == "trousers":
            widths = [0.112 * limb, 0.09 * limb, 0.075 * limb]
            self.canvas.limb([hip, knee, (ankle[0], ankle[1] - 0.015)], widths, cloth, "lower")
            if self.a["shoe_kind"] == "boots":
                self._shoe(ankle, far, trousers=True)
        elif kind == "shorts":
            half = (hip[0] + (knee[0] - hip[0]) * 0.92, hip[1] + (knee[1] - hip[1]) * 0.92)
            width = 0.108 * limb
            if not pose.sideways:  # a gap between the legs tells shorts from a skirt
                width = min(width, 2 * abs(half[0]) - 0.024)
            self.canvas.limb([hip, half], [min(0.12 * limb, width + 0.012), width], cloth, "lower")

    def _shoe(self, ankle: Point, far: float, *, trousers: bool) -> None:
        colour, kind, (x, y) = shade(self.palette.cloth[self.a["shoe_colour"]], far), self.a["shoe_kind"], ankle
        c, forward = self.canvas, self.pose.sideways
        cx, rx = (x + 0.026, 0.064) if forward else (x, 0.042)
        sole = y + 0.04
        if kind == "boots":
            c.limb([(x, y - 0.125), (x, y + 0.01)], [0.074, 0.066], colour, "shoes")
            c.line([(x - 0.035, y - 0.12), (x + 0.035, y - 0.12)], 0.012, detail(colour), "shoes")
        if kind == "sandals":
            c.chord((cx, sole), rx, 0.05, 180, 360, shade(self.skin, far), "skin")
            c.polygon(
                [(cx - rx, sole - 0.012), (cx + rx, sole - 0.012), (cx + rx, sole), (cx - rx, sole)], colour, "shoes"
            )
            bars = (-0.3, 0.45) if forward else (0.0,)
            for bar in bars:
                w = rx * (0.2 if forward else 0.95)
                c.polygon(
                    [
                        (cx + bar * rx - w, sole - 0.032),
                        (cx + bar * rx + w, sole - 0.032),
                        (cx + bar * rx + w, sole - 0.006),
                        (cx + bar * rx - w, sole - 0.006),
                    ],
                    colour,
                    "shoes",
                )
            c.line([(x - 0.022, y - 0.008), (x + 0.022, y - 0.008)], 0.014, colour, "shoes")
            return
        c.chord((cx, sole), rx, 0.062, 180, 360, colour, "shoes")
        if kind == "sneakers":
            white = (250, 250, 250) if self.a["shoe_colour"] != "white" else (176, 180, 186)
            c.line([(cx - rx, sole - 0.004), (cx + rx, sole - 0.004)], 0.012, white, "face")

    def _torso(self) -> None:
        c, b, kind, hem = self.canvas, self.body, self.a["upper_kind"], self.hem
        neck = 0.04 if self.a["gender"] == "man" else 0.032
        if self.pose.sideways:
            c.limb([(0.0, 0.14), (0.0, 0.21)], [0.062, 0.07], shade(self.skin, 0.9), "skin")
            chest = 0.018 if self.a["gender"] == "woman" else 0.004
            end = b.hip * (1.25 if kind == "coat" else 1.03)
            back = [(-b.shoulder * 0.7, 0.19), (-b.shoulder, 0.24), (-b.waist * 0.9, 0.38), (-b.hip, 0.49), (-end, hem)]
            belly = b.waist + (0.012 if self.a["build"] == "heavy" else 0.0)
            front = [
                (end, hem),
                (b.hip * 0.92, 0.49),
                (belly, 0.4),
                (b.shoulder + chest, 0.28),
                (b.shoulder * 0.6, 0.19),
            ]
            c.polygon(back + front, self.upper, "upper")
        else:
            c.limb([(0.0, 0.13), (0.0, 0.205)], [neck * 2, neck * 2.1], shade(self.skin, 0.88), "skin")
            end = b.hip * (1.22 if kind == "coat" else 1.05 if kind in ("hoodie", "sweater") else 1.0)
            half = [(neck * 1.2, 0.18), (b.shoulder * 0.92, 0.2), (b.shoulder, 0.235), (b.waist, 0.38), (b.hip, 0.485)]
            half.append((end, hem))
            c.polygon([*half, *[(-x, y) for x, y in reversed(half)]], self.upper, "upper")
        self._garment_details(end)

    def _garment_details(self, end: float) -> None:
        """Paint what distinguishes the kinds of upper garments."""
        c, b, kind, hem, view = self.canvas, self.body, self.a["upper_kind"], self.hem, self.pose.view
        tone = detail(self.upper)
        band = [(-end, hem - 0.032), (end, hem - 0.032), (end, hem), (-end, hem)]
        if kind in ("sweater", "jacket"):
            c.polygon(band, tone, "upper_plain")
        if kind == "shirt" and view == "front":
            c.chord((0.0, 0.178), 0.05, 0.045, 0, 180, shade(self.skin, 0.95), "skin")
        if kind == "hoodie":
            if view == "front":
                c.polygon([(-0.07, 0.43), (0.07, 0.43), (0.09, 0.5), (-0.09, 0.5)], tone, "upper_plain")
                c.chord((0.0, 0.165), 0.085, 0.06, 0, 180, tone, "upper_plain")
                c.chord((0.0, 0.16), 0.045, 0.04, 0, 180, shade(self.skin, 0.85), "skin")
            elif view == "back":
                c.chord((0.0, 0.175), 0.088, 0.115, 0, 180, tone, "upper_plain")
            else:
                c.ellipse((-b.shoulder * 0.8, 0.205), 0.055, 0.055, tone, "upper_plain")
        if kind in ("jacket", "coat"):
            if view == "front":
                inner = (236, 236, 236) if self.a["upper_colour"] not in ("white", "yellow", "pink") else (64, 64, 70)
                depth = 0.30 if kind == "coat" else hem
                c.polygon([(-0.034, 0.18), (0.034, 0.18), (0.008, depth), (-0.008, depth)], inner, "upper_plain")
                for side in (-1, 1):
                    c.polygon([(side * 0.034, 0.17), (side * 0.085, 0.2), (side * 0.02, 0.28)], tone, "upper_plain")
            elif view == "back":
                c.polygon([(-0.06, 0.168), (0.06, 0.168), (0.066, 0.205), (-0.066, 0.205)], tone, "upper_plain")
            else:
                c.polygon([(-0.05, 0.168), (0.055, 0.168), (0.06, 0.21), (-0.055, 0.205)], tone, "upper_plain")
        if kind == "coat":
            c.polygon(
                [(-b.waist * 1.02, 0.385), (b.waist * 1.02, 0.385), (b.waist * 1.06, 0.415), (-b.waist * 1.06, 0.415)],
                tone,
                "upper_plain",
            )
            if view == "back":
                c.line([(0.0, 0.5), (0.0, hem)], 0.01, tone, "upper_plain")
            elif view == "front":
                c.line([(0.0, 0.3), (0.0, hem)], 0.01, tone, "upper_plain")

    def _sleeve(self, shoulder: Point, elbow: Point, hand: Point, light: float) -> None:
        c, limb, colour = self.canvas, self.body.limb**0.6, shade(self.upper, light)
        c.ellipse(hand, 0.027, 0.03, shade(self.skin, light), "skin")
        if self.a["upper_kind"] == "shirt":
            c.limb([shoulder, elbow, hand], [0.05 * limb, 0.046 * limb, 0.036], shade(self.skin, light), "skin")
            cut = tuple(s + (e - s) * 0.62 for s, e in zip(shoulder, elbow, strict=True))
            c.limb([shoulder, cut], [0.07 * limb, 0.078 * limb], colour, "upper")  # type: ignore[list-item]
            return
        wrist = tuple(e + (h - e) * 0.88 for e, h in zip(elbow, hand, strict=True))
        puff = 1.14 if self.a["upper_kind"] in ("coat", "jacket", "hoodie") else 1.0
        widths = [0.07 * limb * puff, 0.062 * limb * puff, 0.05 * puff]
        c.limb([shoulder, elbow, wrist], widths, colour, "upper")  # type: ignore[list-item]
        if self.a["upper_kind"] in ("sweater", "jacket"):
            c.ellipse(wrist, 0.026, 0.016, detail(self.upper), "upper_plain")  # type: ignore[arg-type]

    def _arms_frontal(self) -> None:
        b = self.body
        for side in (-1, 1):
            swing = side * self.pose.swing
            shoulder = (side * (b.shoulder - 0.022), 0.228)
            elbow = (side * (b.shoulder + 0.022), 0.37)
            hand = (side * (b.shoulder + 0.026 - 0.012 * abs(swing)), 0.5 - 0.035 * max(0.0, swing))
            self._sleeve(shoulder, elbow, hand, 0.84)

    def _hand_side(self, near: bool) -> tuple[Point, Point]:
        swing = self.pose.swing if near else -self.pose.swing
        return (0.06 * swing - 0.012, 0.36), (0.13 * swing + 0.02, 0.485 - 0.02 * abs(swing))

    def _arm_side(self, *, near: bool) -> None:
        elbow, hand = self._hand_side(near)
        self._sleeve((-0.005, 0.232), elbow, hand, 0.86 if near else 0.7)

    # -- bags ------------------------------------------------------------------------------------------------------

    def _backpack(self) -> None:
        c, b, view, colour = self.canvas, self.body, self.pose.view, self.palette.cloth[self.a["bag_colour"]]
        tone = detail(colour)
        if view == "back":
            w = b.shoulder * 0.66
            c.polygon(
                [
                    (-w * 0.7, 0.195),
                    (w * 0.7, 0.195),
                    (w, 0.24),
                    (w, 0.43),
                    (w * 0.8, 0.455),
                    (-w * 0.8, 0.455),
                    (-w, 0.43),
                    (-w, 0.24),
                ],
                colour,
                "bag",
            )
            c.polygon([(-w * 0.7, 0.345), (w * 0.7, 0.345), (w * 0.7, 0.43), (-w * 0.7, 0.43)], tone, "bag")
            c.line([(-w * 0.5, 0.285), (w * 0.5, 0.285)], 0.009, tone, "bag")
        elif view == "front":  # its edges beside the body; the straps come with `_straps`
            w = b.shoulder + 0.018
            c.polygon(
                [(-w * 0.7, 0.175), (w * 0.7, 0.175), (w, 0.25), (w, 0.44), (-w, 0.44), (-w, 0.25)], colour, "bag"
            )
        else:
            x = -b.shoulder * 0.8
            c.polygon(
                [(x, 0.2), (x - 0.07, 0.215), (x - 0.112, 0.27), (x - 0.116, 0.42), (x - 0.085, 0.455), (x, 0.45)],
                colour,
                "bag",
            )
            c.polygon([(x - 0.085, 0.335), (x - 0.13, 0.345), (x - 0.13, 0.425), (x - 0.085, 0.435)], tone, "bag")

    def _straps(self) -> None:
        """Paint the straps of a bag: over both shoulders (backpack, not from behind), or across the body (satchel)."""
        c, b, view, bag = self.canvas, self.body, self.pose.view, self.a["bag"]
        if bag == "none":
            return
        colour = shade(self.palette.cloth[self.a["bag_colour"]], 0.94)
        if bag == "backpack" and view == "front":
            for side in (-1, 1):
                c.line([(side * b.shoulder * 0.6, 0.19), (side * b.shoulder * 0.66, 0.41)], 0.036, colour, "bag")
        elif bag == "backpack" and self.pose.sideways:
            c.line([(-0.03, 0.185), (0.035, 0.25), (0.02, 0.33), (-b.shoulder, 0.39)], 0.026, colour, "strap")
        elif bag == "satchel" and not self.pose.sideways:
            c.line([(-self.bag_x * b.shoulder * 0.62, 0.19), (self.bag_x * b.hip * 0.95, 0.47)], 0.02, colour, "strap")
        elif bag == "satchel":
            start = (0.02, 0.185)
            end = (0.0, 0.47) if self.bag_near else (-b.shoulder * 0.9, 0.33)
            c.line([start, end], 0.02, colour, "strap")

    def _carried_bag(self) -> None:
        """Paint a handbag hanging from a hand, or a satchel at the hip."""
        bag, b, c = self.a["bag"], self.body, self.canvas
        if bag not in ("handbag", "satchel"):
            return
        colour = self.palette.cloth[self.a["bag_colour"]]
        tone = detail(colour)
        if bag == "satchel":
            x, y = (
                ((-0.01 if self.bag_near else -0.02), 0.47)
                if self.pose.sideways
                else (self.bag_x * (b.hip + 0.012), 0.47)
            )
            w, h = 0.066, 0.115
            c.polygon([(x - w, y), (x + w, y), (x + w, y + h), (x - w, y + h)], colour, "bag")
            c.polygon([(x - w, y), (x + w, y), (x + w * 0.7, y + h * 0.55), (x - w * 0.7, y + h * 0.55)], tone, "bag")
            return
        if self.pose.sideways:
            x, y = self._hand_side(self.bag_near)[1]
        else:
            x, y = self.bag_x * (b.shoulder + 0.03), 0.5
        top = y + 0.07
        c.line([(x - 0.038, top), (x - 0.018, y), (x + 0.018, y), (x + 0.038, top)], 0.013, tone, "strap")
        c.polygon([(x - 0.05, top), (x + 0.05, top), (x + 0.072, top + 0.115), (x - 0.072, top + 0.115)], colour, "bag")
        c.line([(x - 0.052, top + 0.03), (x + 0.052, top + 0.03)], 0.011, tone, "bag")
