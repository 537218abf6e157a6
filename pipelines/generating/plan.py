"""The pictures and shards of a generation, determined by the input alone, not by worker or time."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from components.training.randomness import stream_seed
from pipelines.generating.prompts import SEEDS, Prompt, SourceFile
from pipelines.identity.fingerprint import digest


@dataclass(frozen=True)
class Picture:
    """One picture to draw. `image_id` counts all pictures from 0, `index` those of one prompt. adapter: the label of the LoRA that
    it is drawn with, of those that are drawn in turn; empty without."""

    image_id: int
    prompt_id: str
    prompt: str
    seed: int
    index: int
    adapter: str = ""
    negative: str | None = None
    image: SourceFile | None = None
    mask: SourceFile | None = None


@dataclass(frozen=True)
class Shard:
    """The unit of work: consecutive pictures of one LoRA, drawn in fixed batches and written as one file."""

    number: int
    pictures: tuple[Picture, ...]

    @property
    def name(self) -> str:
        return f"{self.number:05d}.parquet"

    @property
    def adapter(self) -> str:
        return self.pictures[0].adapter


def plan(
    prompts: Sequence[Prompt], seed: int, images_per_prompt: int, shard_size: int, adapters: Sequence[str] = ("",)
) -> list[Shard]:
    """Plan all pictures of all prompts, in order, `shard_size` per shard; with `adapters` all of them for each, of the same seeds.

    A prompt's own seed is that of its first picture; the next ones count up from it, as T2I-CompBench's 42, 43, ... do. Without
    one, a picture's seed is derived from (seed, prompt_id, index), so it does not depend on other prompts.
    """
    pictures = [
        Picture(
            image_id=(turn * len(prompts) + position) * images_per_prompt + index,
            prompt_id=prompt.prompt_id,
            prompt=prompt.text,
            seed=stream_seed(seed, "picture", prompt.prompt_id, index)
            if prompt.seed is None
            else (prompt.seed + index) % SEEDS,
            index=index,
            adapter=adapter,
            negative=prompt.negative,
            image=prompt.image,
            mask=prompt.mask,
        )
        for turn, adapter in enumerate(adapters)
        for position, prompt in enumerate(prompts)
        for index in range(images_per_prompt)
    ]
    each = len(prompts) * images_per_prompt
    parts = [
        tuple(pictures[start : min(start + shard_size, end)])
        for end in range(each, len(pictures) + 1, each)
        for start in range(end - each, end, shard_size)
    ]
    return [Shard(number, part) for number, part in enumerate(parts)]


def plan_digest(shards: Sequence[Shard]) -> str:
    """Return a digest of the pictures and their division into shards; of files that they are drawn from, the contents."""
    return digest([[_content(picture) for picture in shard.pictures] for shard in shards])


def _content(picture: Picture) -> list[Any]:
    values = (getattr(picture, field.name) for field in fields(picture))
    return [value.digest if isinstance(value, SourceFile) else value for value in values]
