"""Pictures and a model for tests of galleries: a picture's vector follows from its pixels, and the model counts pictures."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.search.gallery.reading import Gallery
from pipelines.search.gallery_update import update_gallery
from pipelines.search.options import GalleryOptions
from pipelines.workspace import Workspace

DIMENSION = 8


class CountingEncoder:
    """Embeds a picture as a unit vector drawn from a seed that its pixels give."""

    dimension = DIMENSION

    def __init__(self, name: str = "counting", digest: str = "d" * 64) -> None:
        self.name, self.digest = name, digest
        self.embedded: list[tuple[int, int]] = []

    def pictures(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.embedded += [image.size for image in images]
        return np.stack([vector_of(image) for image in images])

    def sentences(self, texts: Sequence[str]) -> np.ndarray:
        raise AssertionError("an update reads no sentences")

    def unread(self, text: str) -> str:
        return ""


def vector_of(image: Image.Image) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32)
    return vector / np.linalg.norm(vector)


def picture(seed: int, size: tuple[int, int] = (12, 24), kind: str = "PNG") -> bytes:
    """An encoded picture of noise, (width, height) pixels."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


def write_pictures(folder: Path, seeds: Sequence[int]) -> Path:
    """Write the picture of each seed as <seed>.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / f"{seed}.png").write_bytes(picture(seed))
    return folder


def id_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def options(gallery: Path, source: Path | str | None = None, **changes: Any) -> GalleryOptions:
    given: dict[str, Any] = {
        "source": None if source is None else str(source),
        "device": "cpu",
        "workers": 0,
        "threads": 1,
        "batch": 4,
        **dict.fromkeys(("model", "format", "approximate", "half", "columns")),
    }
    return GalleryOptions(gallery=gallery, **{**given, **changes})


def workspace(root: Path) -> Workspace:
    return Workspace(root, root / "runs")


def content_of(gallery: Gallery) -> dict[str, list[float]]:
    """The vector of each file."""
    files = gallery.table["files"].to_pylist()
    return {
        file: vector.tolist()
        for names, vector in zip(files, np.asarray(gallery.vectors), strict=True)
        for file in names
    }


def expected(source: Path) -> dict[str, list[float]]:
    """The same by brute force, of a folder."""
    found = sorted(file for file in source.rglob("*") if file.suffix == ".png")
    return {file.relative_to(source).as_posix(): vector_of(Image.open(file)).tolist() for file in found}


class Place:
    """A source of ten pictures, a gallery to make of it, and the model."""

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / "gallery"
        self.source = write_pictures(root / "pictures", range(8))
        write_pictures(self.source / "sub", [8, 9])
        self.encoder = CountingEncoder()

    def update(self, source: Any = None, **changes: Any) -> int:
        """Update; return how many pictures were embedded."""
        before = len(self.encoder.embedded)
        update_gallery(options(self.path, source, **changes), workspace(self.root))
        return len(self.encoder.embedded) - before

    @property
    def gallery(self) -> Gallery:
        return Gallery.open(self.path)
