"""Text search in a gallery of pictures: a vector index in a folder, and the model that encodes queries."""

from importlib import import_module
from typing import Any

_PUBLIC = {"GalleryIndex": "index", "Hits": "index", "TextSearch": "query", "Match": "query"}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
