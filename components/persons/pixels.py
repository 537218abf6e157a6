"""Pixels of pictures: decoded to RGB, resized, and encoded as PNG with the same bytes for the same pixels.

`decode_rgb` is the one way in which pictures of people are read, so that every part of the suite sees the same pixels.
"""

import io
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from components.errors import DataError

BACKGROUND = "white"
"""The colour behind transparent pictures, as on a page."""
MIN_SIDE = 2
"""Pixels of the shorter side of a picture of a person, at least."""
_WHITES = (255, 1023, 4095, 16383, 65535)  # the highest values of 8, 10, 12, 14 and 16 bits
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_PNG_DEPTH = 24  # the byte of a PNG file that is its bits per sample
_TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 262, 339


def decode_rgb(content: bytes) -> Image.Image:
    """Decode an encoded picture to RGB, at its own size: the first frame, turned as its EXIF says, on BACKGROUND.

    Grey of more than 8 bits becomes 8 bits by `shade`. Colour profiles are not applied, as in CLIP's own preprocessing.

    Raises DataError, "cannot be decoded: ..." in one line, for an empty or broken file, and for one of more pixels than Pillow
    accepts (twice `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    if not content:
        raise DataError("cannot be decoded: the file is empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            _turn_upright(image)
            picture = _to_rgb(image, content)
    except UnidentifiedImageError:
        raise DataError("cannot be decoded: in no format that Pillow opens; convert it to JPEG or PNG") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on broken files
        # A message that names a buffer by its memory address is dropped, so that reports have the same bytes every time.
        message = "" if "<_io" in str(error) else " ".join(str(error).split())
        raise DataError(": ".join(filter(None, ("cannot be decoded", type(error).__name__, message)))) from error
    picture.info = {}  # the file's: an orientation that is applied must not be applied again
    return picture


def shade(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale grey values of any type to 0..255; values that are not finite are black, or white where they are +inf.

    0 is black. White is the highest value of 8, 10, 12, 14 or 16 bits, the smallest that no value exceeds (of floats also 1):
    cameras store counts of fewer bits in files of 16, which do not say so. Values below 0 or beyond 16 bits, whose scale nothing
    states, are scaled from the lowest to the highest.
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    whites = (1.0, *_WHITES) if np.issubdtype(values.dtype, np.floating) else _WHITES
    if low >= 0 and high <= whites[-1]:
        low, high = 0.0, next(white for white in whites if high <= white)
    scaled = (values.astype(np.float64) - low) / ((high - low) or 1.0)
    return np.rint(255 * np.nan_to_num(scaled, nan=0.0).clip(0, 1)).astype(np.uint8)


def _turn_upright(image: Image.Image) -> None:
    """Turn a loaded picture in place, as its EXIF or XMP says."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # metadata that cannot be read, or that cannot be written again after the turn
        return


def _to_rgb(image: Image.Image, content: bytes) -> Image.Image:
    transparent = image.info.get(
        "transparency"
    )  # with a palette: an entry, or the alpha of each; else a value or colour
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        image = Image.fromarray(_shade_of_file(image))
        if transparent is not None:
            image.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    elif transparent is not None and image.format == "PNG" and image.mode in ("L", "RGB"):
        image.info["transparency"] = _in_8_bits(transparent, content[_PNG_DEPTH])
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert(_PREMULTIPLIED.get(image.mode, image.mode)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")


def _shade_of_file(image: Image.Image) -> NDArray[np.uint8]:
    """`shade` of a picture of mode I, I;16 or F, with what Pillow ignores in TIFF files: unsigned 32 bits, and 0 for white."""
    values = np.asarray(image)
    if image.format != "TIFF":
        return shade(values)
    tags: Any = getattr(image, "tag_v2", {})
    if values.dtype == np.int32 and tags.get(_TIFF_SAMPLE_FORMAT, (1,)) == (1,):
        values = values.view(np.uint32)
    return 255 - shade(values) if tags.get(_TIFF_PHOTOMETRIC) == 0 else shade(values)


def _in_8_bits(colour: Any, depth: int) -> Any:
    """A PNG's transparent grey (int) or colour (tuple) as Pillow makes pixels of `depth` bits: it leaves this one unscaled."""
    if isinstance(colour, tuple):
        return tuple(_in_8_bits(value, depth) for value in colour)
    return colour >> 8 if depth == 16 else colour * 255 // (2**depth - 1)


Fit = Literal["squash", "crop"]


def resized(picture: Image.Image, height: int, width: int, fit: Fit = "squash") -> NDArray[np.uint8]:
    """Pixels (height, width, 3) of an RGB picture, brought to that size (bilinear, antialiased).

    fit: "squash" keeps all of it, and "crop" its shape: what stands out at two sides is cut off. Equal where the shape is the same.
    """
    if fit == "crop":
        return np.array(ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR))
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))  # of its own size: a copy


def encode_png(pixels: Tensor | np.ndarray) -> bytes:
    """Encode uint8 pixels, a tensor (3, H, W) or an array (H, W, 3), as PNG with fixed settings."""
    array = pixels.permute(1, 2, 0).cpu().numpy() if isinstance(pixels, Tensor) else pixels
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(file, format="PNG", compress_level=6, optimize=False)
    return file.getvalue()
