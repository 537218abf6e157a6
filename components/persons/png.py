"""Pictures as PNG, the same pixels the same bytes."""

import io

import numpy as np
from PIL import Image
from torch import Tensor


def encode_png(pixels: Tensor | np.ndarray) -> bytes:
    """uint8 pixels, a tensor (3, H, W) or an array (H, W, 3), as PNG with fixed settings."""
    array = pixels.permute(1, 2, 0).cpu().numpy() if isinstance(pixels, Tensor) else pixels
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(file, format="PNG", compress_level=6, optimize=False)
    return file.getvalue()
