"""Degradations of the drawn pictures: framing, light, blur, sensor noise, clutter and occlusion, as named strengths."""

from dataclasses import dataclass, fields

import numpy as np
from PIL import Image, ImageFilter

from components.errors import ParameterError


@dataclass(frozen=True)
class Degradation:
    """Strengths from 0 (off) to 1.

    Attributes:
        framing: variation of the size and the place of the person in the picture.
        lighting: brightness, contrast, colour cast and uneven light.
        blur: lens blur.
        noise: sensor noise.
        clutter: density of objects in the background.
        occlusion: probability that something stands in front of the person.
    """

    framing: float = 0.5
    lighting: float = 0.3
    blur: float = 0.15
    noise: float = 0.15
    clutter: float = 0.0
    occlusion: float = 0.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not 0.0 <= value <= 1.0:
                raise ParameterError(f"degradation {item.name} is {value}; strengths go from 0 to 1")


PRESETS: dict[str, Degradation] = {
    "clean": Degradation(framing=0.4, lighting=0.2, blur=0.05, noise=0.1),
    "cluttered": Degradation(framing=0.8, lighting=0.6, blur=0.4, noise=0.4, clutter=0.8),
    "occluded": Degradation(framing=1.0, lighting=0.7, blur=0.5, noise=0.4, clutter=0.8, occlusion=0.5),
}


def light(pixels: np.ndarray, coverage: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Light the scene: round shading on the person, then exposure, cast and gradient. float32 (H, W, 3) -> same.

    `coverage` (H, W): where the person is. Casts are small and darkness moderate, so that colours keep their names.
    """
    height, width, _ = pixels.shape
    columns = np.linspace(-1, 1, width, dtype=np.float32)
    direction = float(rng.uniform(-1, 1))
    mass = coverage.sum(axis=0)
    middle = float((mass * columns).sum() / max(mass.sum(), 1e-6))
    relief = 1.0 + 0.16 * direction * np.clip((columns - middle) * 2.2, -1, 1)
    pixels = pixels * (1.0 + coverage[..., None] * (relief[None, :, None] - 1.0))
    if strength > 0:
        exposure = 1.0 + strength * float(rng.uniform(-0.38, 0.22))
        cast = 1.0 + strength * rng.uniform(-0.07, 0.07, size=3).astype(np.float32)
        rows = np.linspace(-1, 1, height, dtype=np.float32)
        slope = strength * rng.uniform(-0.16, 0.16, size=2)
        gradient = 1.0 + float(slope[0]) * columns[None, :] + float(slope[1]) * rows[:, None]
        pixels = pixels * (exposure * cast) * gradient[..., None]
        haze = strength * float(rng.uniform(0, 0.14))
        pixels = pixels * (1 - haze) + 150.0 * haze
    return pixels


def blur(picture: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Lens blur, up to a radius of 1/80 of the picture's height at full strength."""
    radius = strength * float(rng.uniform(0, 1)) * picture.height / 80
    return picture.filter(ImageFilter.GaussianBlur(radius)) if radius > 0.15 else picture


def sensor_noise(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of up to 14 grey levels. float32 (H, W, 3) -> same."""
    sigma = strength * float(rng.uniform(0.2, 1)) * 14.0
    return pixels + rng.standard_normal(pixels.shape, dtype=np.float32) * sigma if sigma > 0 else pixels
