"""The scene of a drawn person: walls, floors and objects behind, and objects in front."""

import numpy as np
from PIL import Image, ImageDraw

from components.persons.drawn.canvas import Canvas, Colour


def _muted(rng: np.random.Generator, low: int = 95, high: int = 205) -> Colour:
    grey = int(rng.integers(low, high))
    return tuple(int(np.clip(grey + rng.integers(-22, 23), 0, 255)) for _ in range(3))  # type: ignore[return-value]


def _vivid(rng: np.random.Generator) -> Colour:
    return tuple(int(c) for c in rng.integers(20, 240, size=3))  # type: ignore[return-value]


def background(size: tuple[int, int], clutter: float, rng: np.random.Generator) -> Image.Image:
    """Draw a wall and a floor, with more objects in front of the wall the higher `clutter` (0 to 1). Size: (width, height)."""
    width, height = size
    picture = Image.new("RGB", size, _muted(rng, 120, 215))
    draw = ImageDraw.Draw(picture)
    horizon = int(height * rng.uniform(0.55, 0.9))
    draw.rectangle((0, horizon, width, height), fill=_muted(rng, 85, 170))
    if clutter <= 0:
        return picture
    wall = rng.random()
    if wall < 0.3 * clutter + 0.1:
        _bricks(draw, width, horizon, rng)
    elif wall < 0.6:
        _panels(draw, width, horizon, rng)
    for _ in range(int(rng.poisson(5 * clutter))):
        _background_object(draw, width, height, horizon, rng)
    if rng.random() < clutter:
        _floor_lines(draw, width, height, horizon, rng)
    return picture


def _bricks(draw: ImageDraw.ImageDraw, width: int, horizon: int, rng: np.random.Generator) -> None:
    step, joint = max(6, horizon // int(rng.integers(9, 18))), _muted(rng, 130, 220)
    draw.rectangle((0, 0, width, horizon), fill=_muted(rng, 100, 180))
    for row, y in enumerate(range(0, horizon, step)):
        draw.line((0, y, width, y), fill=joint, width=max(1, step // 8))
        for x in range((row % 2) * step, width, 2 * step):
            draw.line((x, y, x, min(y + step, horizon)), fill=joint, width=max(1, step // 8))


def _panels(draw: ImageDraw.ImageDraw, width: int, horizon: int, rng: np.random.Generator) -> None:
    x = 0
    while x < width:
        end = x + int(width * rng.uniform(0.1, 0.35)) + 2
        draw.rectangle((x, 0, end, horizon), fill=_muted(rng, 70, 225))
        x = end


def _background_object(
    draw: ImageDraw.ImageDraw, width: int, height: int, horizon: int, rng: np.random.Generator
) -> None:
    """Draw a window, sign, pole, crate, tree or passer-by at a random place."""
    kind = int(rng.integers(5))
    x = int(rng.uniform(-0.1, 1.0) * width)
    colour = _vivid(rng) if rng.random() < 0.45 else _muted(rng, 40, 230)
    if kind == 0:  # window or sign
        y, w, h = (
            int(rng.uniform(0, 0.5) * height),
            int(rng.uniform(0.12, 0.4) * width),
            int(rng.uniform(0.05, 0.2) * height),
        )
        draw.rectangle((x, y, x + w, y + h), fill=colour, outline=_muted(rng, 40, 230), width=max(1, height // 100))
    elif kind == 1:  # pole
        draw.rectangle((x, 0, x + max(2, int(width * rng.uniform(0.02, 0.07))), horizon + height // 12), fill=colour)
    elif kind == 2:  # crate or parked car
        w, h = int(rng.uniform(0.2, 0.5) * width), int(rng.uniform(0.08, 0.22) * height)
        draw.rounded_rectangle((x, horizon - h // 2, x + w, horizon + h // 2), radius=max(1, h // 5), fill=colour)
    elif kind == 3:  # tree
        green: Colour = (int(rng.integers(40, 90)), int(rng.integers(90, 140)), int(rng.integers(40, 80)))
        radius = int(rng.uniform(0.15, 0.3) * width)
        y = int(rng.uniform(0.05, 0.3) * height)
        draw.rectangle((x - width // 40, y, x + width // 40, horizon), fill=(92, 70, 52))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=green)
    else:  # a passer-by, too small to be taken for the subject
        h, foot = int(rng.uniform(0.16, 0.3) * height), horizon + int(0.02 * height)
        w = max(3, h // 5)
        draw.rectangle((x, foot - h // 2, x + w, foot), fill=_muted(rng, 40, 160))
        draw.rectangle((x - w // 5, foot - int(h * 0.85), x + w + w // 5, foot - h // 2), fill=colour)
        draw.ellipse((x + w // 5, foot - h, x + w - w // 5, foot - int(h * 0.83)), fill=(196, 150, 120))


def _floor_lines(draw: ImageDraw.ImageDraw, width: int, height: int, horizon: int, rng: np.random.Generator) -> None:
    colour, middle = _muted(rng, 60, 230), int(width * rng.uniform(0.2, 0.8))
    for x in range(-width, 2 * width, max(6, width // int(rng.integers(2, 6)))):
        draw.line((middle + (x - middle) // 4, horizon, x, height), fill=colour, width=max(1, height // 130))


def shadow(canvas: Canvas, size: float, x: float, ground: float) -> None:
    """Draw a soft shadow on the ground under the feet."""
    draw = ImageDraw.Draw(canvas.colours, "RGBA")
    (left, top), (right, bottom) = canvas.pixels([(x - 0.17 * size, ground - 0.022), (x + 0.17 * size, ground + 0.018)])
    draw.ellipse((left, top, right, bottom), fill=(20, 20, 25, 80))


def occluder(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw an occluder: a wall or bush in front of the legs, a post, or a crate at one side."""
    colour, kind = _muted(rng, 60, 190), int(rng.integers(4))
    trim: Colour = tuple(int(c * 0.75) for c in colour)  # type: ignore[assignment]
    if kind == 0:  # low wall or barrier
        top = float(rng.uniform(0.58, 0.88))
        canvas.polygon([(-0.25, top), (0.25, top), (0.25, 1.0), (-0.25, 1.0)], colour, "occluder")
        canvas.line([(-0.25, top), (0.25, top)], 0.02, trim, "occluder")
    elif kind == 1:  # post
        x, half = float(rng.uniform(-0.2, 0.2)), float(rng.uniform(0.012, 0.035))
        canvas.polygon([(x - half, 0.0), (x + half, 0.0), (x + half, 1.0), (x - half, 1.0)], colour, "occluder")
    elif kind == 2:  # crate or bonnet from one side
        side, reach, top = float(rng.choice([-1, 1])), float(rng.uniform(-0.02, 0.16)), float(rng.uniform(0.45, 0.8))
        canvas.polygon(
            [(side * 0.25, top), (side * -reach, top + 0.03), (side * -reach, 1.0), (side * 0.25, 1.0)],
            colour,
            "occluder",
        )
        canvas.line([(side * 0.25, top), (side * -reach, top + 0.03)], 0.016, trim, "occluder")
    else:  # bush
        base = float(rng.uniform(0.72, 0.95))
        for _ in range(14):
            x, y = float(rng.uniform(-0.26, 0.26)), float(rng.uniform(base, 1.02))
            leaf: Colour = (int(rng.integers(45, 80)), int(rng.integers(85, 125)), int(rng.integers(45, 75)))
            canvas.ellipse((x, y), 0.075, 0.06, leaf, "occluder")
