"""Small pictures of a gallery, in WebP."""

import io
import os
from pathlib import Path

from PIL import Image

from components.files import temporary_beside
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


def write_thumbnail(gallery: Path, picture_id: str, content: bytes) -> None:
    """Write the thumbnail of a picture. It is not flushed to the disk: `read_thumbnail` sees one that a crash has cut off."""
    path = thumbnail_path(gallery, picture_id)
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
    os.replace(temporary, path)


def read_thumbnail(gallery: Path, picture_id: str) -> bytes | None:
    """Return the thumbnail of a picture, None where there is no whole one."""
    try:
        content = thumbnail_path(gallery, picture_id).read_bytes()
    except OSError:
        return None
    whole = content[:4] == b"RIFF" and int.from_bytes(content[4:8], "little") + 8 == len(content)
    return content if whole else None
