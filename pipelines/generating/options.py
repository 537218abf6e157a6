"""The options of `generate`."""

from dataclasses import dataclass
from pathlib import Path

from components.taca.memory_options import Offload, Quantization


@dataclass(frozen=True)
class GenerateOptions:
    """What is None is taken from params.yaml, or switched off.

    adapter: (file or folder, weight) of each LoRA. each_adapter: the same of LoRAs of which one is on at a time; all prompts
    are drawn with each. adapter_threshold: none, one for all of these, or one for each of `adapter`, then of `each_adapter`.
    negative_prompt: for prompts without one of their own. gguf: a file to read the transformer from.
    """

    prompts: Path
    output: Path
    model: Path | None
    adapter: list[tuple[Path, float]]
    each_adapter: list[tuple[Path, float]]
    adapter_threshold: list[float]
    gamma: float | None
    threshold: float | None
    height: int | None
    width: int | None
    steps: int | None
    guidance: float
    embedded_guidance: float | None
    negative_prompt: str | None
    strength: float | None
    dtype: str | None
    quantize: Quantization | None
    gguf: Path | None
    seed: int | None
    images_per_prompt: int
    shard_size: int
    batch: int
    workers: int | None
    threads: int | None
    device: str | None
    offload: Offload | None
    max_failures: int | None
    max_characters: int | None
    naming: str | None
