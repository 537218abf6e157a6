"""Small pictures of a gallery, in WebP."""

import io
from pathlib import Path

from PIL import Image

from components.search.gallery import layout

LONGEST_SIDE = 256
QUALITY = 80


def encode_thumbnail(picture: Image.Image) -> bytes:
    """Return an RGB picture as WebP, its longest side at most LONGEST_SIDE pixels."""
    small = picture.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    small.save(file, format="WEBP", quality=QUALITY)
    return file.getvalue()


def thumbnail_path(gallery: Path, picture_id: str) -> Path:
    """Return where the thumbnail of a picture is; in 256 folders, as a folder of a million files is slow to list."""
    return gallery / layout.THUMBNAILS / picture_id[:2] / f"{picture_id}.webp"
