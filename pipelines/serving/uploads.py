"""Pictures that clients send."""

import io
import warnings

from PIL import Image

from components.errors import DataError
from components.persons.pixels import MIN_SIDE, decode_rgb
from pipelines.serving.answers import Refused
from pipelines.serving.limits import Limits

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow reads some forty others, with decoders that are rarely tested."""


def read_upload(content: bytes, limits: Limits) -> Image.Image:
    """Decode a picture by the project's one function, once its header has told that it is not too large.

    Raises Refused: 413 for too many bytes or pixels, 415 for another format, 400 for a broken file.
    """
    if len(content) > limits.picture_bytes:
        raise Refused(413, f"the picture is too large: at most {limits.picture_bytes} bytes", "size")
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=FORMATS) as header:
            warnings.simplefilter("ignore")
            width, height = header.size
    except Image.DecompressionBombError:
        raise _too_many_pixels(limits) from None
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on what is no picture
        raise Refused(
            415, f"the file is not a picture in one of these formats: {', '.join(FORMATS)}", "format"
        ) from None
    if width * height > limits.picture_pixels:
        raise _too_many_pixels(limits)
    if min(width, height) < MIN_SIDE:
        raise Refused(400, f"the picture has {width} x {height} pixels; each side needs {MIN_SIDE}", "format")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decode_rgb(content)
    except DataError:
        raise Refused(400, "the picture is broken; save it again as JPEG or PNG", "format") from None


def _too_many_pixels(limits: Limits) -> Refused:
    return Refused(413, f"the picture has too many pixels: at most {limits.picture_pixels} are decoded", "pixels")


def media_type(content: bytes) -> str:
    """Return the media type of an encoded picture, as its first bytes say."""
    try:
        with Image.open(io.BytesIO(content)) as header:
            return header.get_format_mimetype() or "application/octet-stream"
    except Exception:
        return "application/octet-stream"
