"""The options of `generate`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GenerateOptions:
    """What is None is taken from params.yaml, or switched off."""

    prompts: Path
    output: Path
    model: Path | None
    adapter: Path | None
    gamma: float | None
    threshold: float | None
    height: int | None
    width: int | None
    steps: int | None
    guidance: float
    embedded_guidance: float | None
    dtype: str | None
    seed: int | None
    images_per_prompt: int
    shard_size: int
    batch: int
    workers: int | None
    threads: int | None
    device: str | None
    max_failures: int | None
    max_characters: int | None
    naming: str | None
