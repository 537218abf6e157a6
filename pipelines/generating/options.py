"""The options of `generate`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GenerateOptions:
    """What is None is taken from params.yaml, or switched off.

    adapter: (file or folder, weight) of each LoRA. adapter_threshold: none, one for all, or one for each.
    """

    prompts: Path
    output: Path
    model: Path | None
    adapter: list[tuple[Path, float]]
    adapter_threshold: list[float]
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
