"""The pictures and shards of a generation, determined by the input alone, not by worker or time."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from components.training.randomness import stream_seed
from pipelines.generating.prompts import SEEDS, Prompt
from pipelines.identity.fingerprint import digest


@dataclass(frozen=True)
class Picture:
    """One picture to draw. `image_id` counts all pictures from 0, `index` those of one prompt."""

    image_id: int
    prompt_id: str
    prompt: str
    seed: int
    index: int


@dataclass(frozen=True)
class Shard:
    """The unit of work: consecutive pictures, drawn in fixed batches and written as one file."""

    number: int
    pictures: tuple[Picture, ...]

    @property
    def name(self) -> str:
        return f"{self.number:05d}.parquet"


def plan(prompts: Sequence[Prompt], seed: int, images_per_prompt: int, shard_size: int) -> list[Shard]:
    """Plan all pictures of all prompts, in order, `shard_size` per shard.

    A prompt's own seed is that of its first picture; the next ones count up from it, as T2I-CompBench's 42, 43, ... do. Without
    one, a picture's seed is derived from (seed, prompt_id, index), so it does not depend on other prompts.
    """
    pictures = [
        Picture(
            image_id=position * images_per_prompt + index,
            prompt_id=prompt.prompt_id,
            prompt=prompt.text,
            seed=stream_seed(seed, "picture", prompt.prompt_id, index)
            if prompt.seed is None
            else (prompt.seed + index) % SEEDS,
            index=index,
        )
        for position, prompt in enumerate(prompts)
        for index in range(images_per_prompt)
    ]
    starts = range(0, len(pictures), shard_size)
    return [Shard(number, tuple(pictures[start : start + shard_size])) for number, start in enumerate(starts)]


def plan_digest(shards: Sequence[Shard]) -> str:
    """Return a digest of the pictures and their division into shards."""
    return digest([[astuple(picture) for picture in shard.pictures] for shard in shards])
