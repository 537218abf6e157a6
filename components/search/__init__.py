"""Search of a gallery by sentences and pictures: models that embed them, exact and approximate search, filters, re-ranking."""

from typing import Any

from components.exports import all_names, find

_PUBLIC = {
    "encoders": ("Encoder", "open_encoder"),
    "filters": ("Filter",),
    "index": ("GalleryIndex", "Hits"),
    "query": ("Match", "TextSearch"),
    "searcher": ("Query", "Searcher"),
}
__all__ = all_names(_PUBLIC)


def __getattr__(name: str) -> Any:
    return find(__name__, _PUBLIC, name)
