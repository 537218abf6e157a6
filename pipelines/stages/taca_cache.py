"""Encode training pictures and captions once, so that LoRA training needs neither the VAE nor the text encoders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.persons.pixels import resized
from components.persons.prompts import prompt_form
from components.persons.shards import PersonDataset
from components.taca.cache import CachedCaption, write_cache
from components.taca.reference import DTYPES, TEXT, load_base
from pipelines.engine.context import StageContext
from pipelines.params import Parameters
from pipelines.stages.parts.picture_sizes import count_unlike


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings, people, size = params.taca_cache, PersonDataset(inputs["people"]), params.pictures
    rows = people.needed_rows(split="train", form=prompt_form(people))[: settings.captions]
    captions = [CachedCaption(row["image_id"], row["caption_id"], row["caption"]) for row in rows]
    sizes: list[tuple[int, int]] = []

    def pixels(image_ids: Sequence[int]) -> torch.Tensor:
        pictures = [people.picture(image_id) for image_id in image_ids]
        sizes.extend(picture.size for picture in pictures)
        fitted = np.stack([resized(picture, size.height, size.width, settings.fit) for picture in pictures])
        return torch.from_numpy(fitted).permute(0, 3, 1, 2).contiguous()

    pipe = load_base(inputs["base"], components=("vae", *TEXT), dtype=DTYPES[settings.base_dtype]).to(context.device)
    write_cache(pipe, outputs["cache"], captions, pixels, batch_size=settings.batch)
    return {"captions": len(captions), **count_unlike(sizes, size.height, size.width, settings.fit)}
