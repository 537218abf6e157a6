"""The options of `curate`."""

from dataclasses import dataclass
from pathlib import Path

from components.errors import ParameterError


@dataclass(frozen=True)
class CurateOptions:
    """Raises ParameterError, in one line, for options that are out of range or exclude each other."""

    source: Path
    output: Path
    short_side: int
    aspect: tuple[float, float] | None
    detector: Path | None
    detector_sha256: str | None
    confidence: float
    crop: bool
    captioner: Path | None
    probe: Path | None
    templates: Path | None
    captions: int
    words: int
    matcher: Path | None
    least_match: float | None
    keep_fraction: float
    near_duplicates: int | None
    batch: int
    device: str
    seed: int

    def __post_init__(self) -> None:
        if self.captioner and self.probe:
            raise ParameterError("--captioner and --probe both write captions: give one of them")
        if self.templates and not self.captioner:
            raise ParameterError("--templates are for a vision-language model: give --captioner")
        if (self.least_match is not None or self.keep_fraction != 1) and not self.matcher:
            raise ParameterError("--least-match and --keep-fraction need a --matcher, which scores the match")
        if (self.crop or self.detector_sha256) and not self.detector:
            raise ParameterError("--crop and --detector-sha256 need --detector, which finds people")
        for name in ("batch", "captions", "words"):
            if getattr(self, name) < 1:
                raise ParameterError(f"--{name} {getattr(self, name)}: must be at least 1")
        if not 0 < self.keep_fraction <= 1:
            raise ParameterError(f"--keep-fraction {self.keep_fraction}: must lie in (0, 1]")
        if self.near_duplicates is not None and not 0 <= self.near_duplicates <= 15:
            raise ParameterError(f"--near-duplicates {self.near_duplicates}: must lie between 0 and 15 bits of 64")
