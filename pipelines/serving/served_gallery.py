"""The version of the gallery that answers, and how a newer one takes over.

A request takes `current` once and uses it to its end. A new version is opened beside the old one, and then replaces it in one
assignment: requests that have begun end on the old one, which is closed when the last of them lets it go.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from components.search.encoders import Encoder, open_encoder
from components.search.gallery.reading import Gallery, current_version
from components.search.searcher import Searcher
from pipelines.errors import one_line
from pipelines.serving.metrics import Metrics

LOG = logging.getLogger("pipelines.serving")
POLL_SECONDS = 2.0
Encode = Callable[[Encoder, Sequence[str]], np.ndarray]
"""Encodes the sentences of one request, maybe together with those of others."""


@dataclass(frozen=True)
class Opened:
    """One version: its gallery, the model itself, and a searcher whose sentences go through `Encode`."""

    gallery: Gallery
    encoder: Encoder
    searcher: Searcher


class Source(Protocol):
    """Where versions come from."""

    def version(self) -> str:
        """Return the name of the newest version; cheap. Raises DataError."""

    def open(self, encode: Encode | None, before: Encoder | None) -> Opened:
        """Open the newest version, with the model that is open already (`before`) if it is the same. Raises DataError."""


@dataclass(frozen=True)
class GalleryFolder:
    """A gallery on disk. `root` is the checkout, where the pipeline's model is; `model` replaces the gallery's reference to it."""

    path: Path
    root: Path
    model: str | None = None

    def version(self) -> str:
        return current_version(self.path)

    def open(self, encode: Encode | None = None, before: Encoder | None = None) -> Opened:
        gallery = Gallery.open(self.path)
        same = before is not None and before.digest == gallery.model["digest"]
        encoder = before if same and before else open_encoder(self.model or gallery.model, self.root)
        return Opened(gallery, encoder, Searcher(gallery, SharedEncoder(encoder, encode) if encode else encoder))


class SharedEncoder:
    """An encoder whose sentences are encoded by `encode`; all else is the encoder's own."""

    def __init__(self, encoder: Encoder, encode: Encode) -> None:
        self._encoder, self._encode = encoder, encode

    def sentences(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(self._encoder, texts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


class ServedGallery:
    """Holds the version that answers. Raises DataError when it is made and there is none."""

    def __init__(
        self, source: Source, metrics: Metrics, *, encode: Encode | None = None, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._source, self._metrics, self._encode, self._seconds = source, metrics, encode, poll_seconds
        self._seen = source.version()
        self._warned = ""
        self.current = source.open(encode, None)
        self._opened()

    def refresh(self) -> bool:
        """Take over a newer version if there is one. Where that fails, the old one goes on answering, and it is tried again."""
        try:
            newest = self._source.version()
            if newest == self._seen:
                return False
            self.current = self._source.open(self._encode, self.current.encoder)
        except Exception as error:  # whatever is wrong with the new one, there is an old one that answers
            self._metrics.failures.inc()
            if (reason := one_line(error)) != self._warned:
                LOG.warning("version %s goes on answering: %s", self.current.gallery.version, reason)
            self._warned = reason
            return False
        self._seen, self._warned = newest, ""
        self._opened()
        return True

    async def follow(self) -> None:
        """Take over newer versions until cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            await asyncio.to_thread(self.refresh)

    def _opened(self) -> None:
        self._metrics.versions.inc()
        self._metrics.pictures.set(self.current.gallery.size)
