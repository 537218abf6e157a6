"""The options of `gallery`."""

from dataclasses import dataclass
from pathlib import Path

from components.errors import ParameterError
from components.search.gallery.sources import KINDS, Kind


@dataclass(frozen=True)
class GalleryOptions:
    """None: as in the last update of the gallery. Raises ParameterError for options out of range."""

    gallery: Path
    source: str | None
    model: str | None
    format: Kind | None
    approximate: bool | None
    half: bool | None
    columns: tuple[str, ...] | None
    workers: int
    threads: int | None
    device: str
    batch: int

    def __post_init__(self) -> None:
        if self.batch < 1 or self.workers < 0 or (self.threads is not None and self.threads < 1):
            raise ParameterError(
                f"--batch {self.batch}, --workers {self.workers}, --threads {self.threads}: batch and threads must be at least 1, "
                "workers at least 0"
            )
        if self.format is not None and self.format not in KINDS:
            raise ParameterError(f"--format {self.format}: must be one of {', '.join(KINDS)}")
        if self.source is None and (self.format or self.columns):
            raise ParameterError("--format and --columns describe a source: give SOURCE too")
