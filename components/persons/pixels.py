"""Pixels of pictures: decoded to RGB, resized, and encoded as PNG with the same bytes for the same pixels."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def decode_rgb(content: bytes) -> Image.Image:
    """Decode an encoded picture to RGB, at its own size. Raises what Pillow raises, OSError for most broken files."""
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")


def resized(picture: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """Pixels (height, width, 3) of an RGB picture, squashed to that size (bilinear, antialiased)."""
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))  # of its own size: a copy


def encode_png(pixels: Tensor | np.ndarray) -> bytes:
    """Encode uint8 pixels, a tensor (3, H, W) or an array (H, W, 3), as PNG with fixed settings."""
    array = pixels.permute(1, 2, 0).cpu().numpy() if isinstance(pixels, Tensor) else pixels
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(file, format="PNG", compress_level=6, optimize=False)
    return file.getvalue()
