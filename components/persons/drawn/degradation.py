"""Degradations of the drawn pictures: framing, light, blur, sensor noise, clutter and occlusion."""

import numpy as np
from PIL import Image, ImageFilter


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
