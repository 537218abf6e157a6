"""What the verb `search` is asked for."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SearchOptions:
    """Fields are named as the options of `pipelines/commands/search.py`, which explains them."""

    sentences: tuple[str, ...] = ()
    gallery: Path | None = None
    model: str | None = None
    like: str | None = None
    weight: float = 0.5
    where: tuple[str, ...] = ()
    rerank: bool = False
    exact: bool = False
    top: int = 5
    picture: Path | None = None
    json: bool = False
