"""Encode training pictures and captions once, so that LoRA training needs neither the VAE nor the text encoders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.persons.prompts import prompt_form
from components.persons.shards import PersonDataset
from components.taca.cache import CachedCaption, write_cache
from components.taca.reference import DTYPES, TEXT, load_base
from pipelines.engine.context import StageContext
from pipelines.params import Parameters


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings, people, size = params.taca_cache, PersonDataset(inputs["people"]), params.pictures
    rows = people.needed_rows(split="train", form=prompt_form(people))[: settings.captions]
    captions = [CachedCaption(row["image_id"], row["caption_id"], row["caption"]) for row in rows]
    pipe = load_base(inputs["base"], components=("vae", *TEXT), dtype=DTYPES[settings.base_dtype]).to(context.device)
    write_cache(
        pipe,
        outputs["cache"],
        captions,
        lambda image_ids: people.pixels(image_ids, size.height, size.width),
        batch_size=settings.batch,
    )
    return {"captions": len(captions)}
