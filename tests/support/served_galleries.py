"""A gallery of coloured pictures, an encoder that knows colours, and the service on them without Ray."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from starlette.testclient import TestClient

from components.search.encoders import Encoder
from components.search.gallery import layout
from components.search.gallery.reading import Gallery
from components.search.gallery.writing import switch, write_version
from components.search.searcher import Searcher
from pipelines.serving.access import LOOPBACK_NAMES, Access, token_digest
from pipelines.serving.application import Service, application
from pipelines.serving.limits import LIMITS, Limits
from pipelines.serving.metrics import Metrics
from pipelines.serving.served_gallery import Encode, GalleryFolder, Opened, ServedGallery, SharedEncoder

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (250, 250, 250)}
TOKEN = "correct-horse-battery-staple"


class ColourEncoder:
    """Embeds a picture as its mean colour, a sentence as the mean of the colours that it names."""

    name, digest, dimension = "colours", "colours-1", 4

    def __init__(self) -> None:
        self.batches: list[int] = []

    def pictures(self, images: Sequence[Image.Image]) -> np.ndarray:
        return _unit([(*np.asarray(image, np.float32).mean((0, 1)), 20) for image in images])

    def sentences(self, texts: Sequence[str]) -> np.ndarray:
        self.batches.append(len(texts))
        named = [[COLOURS[word] for word in text.lower().split() if word in COLOURS] for text in texts]
        return _unit([(*np.mean(found or [(90, 90, 90)], 0), 20) for found in named])

    def unread(self, text: str) -> str:
        return " ".join(text.split()[20:])


def _unit(rows: Sequence[Sequence[float]]) -> np.ndarray:
    vectors = np.asarray(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class ColourFolder(GalleryFolder):
    """A gallery whose model is the encoder above."""

    encoder = ColourEncoder()

    def open(self, encode: Encode | None = None, before: object = None) -> Opened:
        gallery = Gallery.open(self.path)
        encoder = SharedEncoder(self.encoder, encode) if encode else self.encoder
        return Opened(gallery, self.encoder, Searcher(gallery, encoder))


def encoded(colour: tuple[int, int, int], size: tuple[int, int] = (12, 24), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def write_gallery(folder: Path, first: int = 0, count: int = 12, encoder: Encoder | None = None) -> list[str]:
    """Write pictures `first` to `first + count` as a new version that answers; returns their ids.

    Picture n has colour n % 4, in a shade of its own, identity n % 6 but for the last two, which have none, and camera n % 3.
    """
    pictures = folder.parent / f"{folder.name}-pictures"
    pictures.mkdir(exist_ok=True)
    rows: list[dict[str, object]] = []
    colours = list(COLOURS.values())
    for number in range(first, first + count):
        content = encoded(tuple(max(0, part - number) for part in colours[number % 4]))  # type: ignore[arg-type]
        (pictures / f"secret-name-{number}.png").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        identity = None if number >= first + count - 2 else str(number % 6)
        rows.append(
            {
                "id": layout.picture_id(sha256),
                "sha256": sha256,
                "file": f"secret-name-{number}.png",
                "width": 12,
                "height": 24,
                "bytes": len(content),
                "identity": identity,
                "caption": f"a person in {list(COLOURS)[number % 4]}, number {number}",
                "files": [f"secret-name-{number}.png"],
                "identities": [identity] if identity else [],
                "camera": number % 3,
                "seen": float("nan") if number % 2 else number / 2,
            }
        )
    names = [field.name for field in layout.SCHEMA]
    table = pa.Table.from_pylist(rows)
    table = table.select([*names, "camera", "seen"]).cast(
        pa.schema([*layout.SCHEMA, ("camera", pa.int64()), ("seen", pa.float64())])
    )
    encoder = encoder or ColourEncoder()
    images = [Image.open(pictures / str(row["file"])).convert("RGB") for row in rows]
    version = write_version(
        folder,
        [encoder.pictures(images)],
        table,
        dimension=encoder.dimension,
        dtype="float32",
        model={"name": encoder.name, "digest": encoder.digest},
        settings={},
        source={"kind": "folder", "base": str(pictures)},
    )
    switch(folder, version)
    return [str(row["id"]) for row in rows]


def small_model(folder: Path) -> Encoder:
    """Write a model of the pipeline's kind with random weights, and open it as a service does."""
    from components.gadms.model import DualEncoder
    from components.gadms.tokenizer import CaptionTokenizer
    from components.search.encoders import open_encoder

    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": [16, 8], "layers": 1, "width": 24, "head_width": 24, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
    }
    DualEncoder.create(config, tokenizer=CaptionTokenizer.from_corpus(["a man in a red coat"])).save(folder)
    return open_encoder(str(folder), Path(__file__).parent)  # named by its absolute path


def service_on(folder: Path, *, token: str | None = None, poll_seconds: float = 3600, **limits: float) -> Service:
    """The service on a gallery; `limits` replace those of `Limits`, and rates are out of the way unless they are among them."""
    chosen: Limits = replace(LIMITS, **{"searches_per_minute": 10**6, "files_per_minute": 10**6, **limits})  # type: ignore[arg-type]
    metrics = Metrics()
    return Service(
        gallery=ServedGallery(ColourFolder(folder, folder.parent), metrics, poll_seconds=poll_seconds),
        metrics=metrics,
        access=Access((*LOOPBACK_NAMES, "testserver"), token_digest(token) if token else None),
        limits=chosen,
        search_threads=2,
    )


@contextmanager
def client_of(service: Service) -> Iterator[TestClient]:
    """A client of the service in this process, as a browser on this machine. A failure inside is an answer of status 500."""
    with TestClient(application(service), raise_server_exceptions=False) as client:
        yield client
