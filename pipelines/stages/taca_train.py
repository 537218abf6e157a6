"""Train a LoRA above the threshold: `taca` under the temperature schedule, `lora` at gamma = 1 (the control)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.taca.batches import cache_batches
from components.taca.cache import LatentCache
from components.taca.lora import add_lora, save_lora
from components.taca.reference import load_base
from components.taca.schedule import TemperatureSchedule
from components.taca.velocity import VelocityTask
from components.training.loop import fit
from pipelines.context import StageContext
from pipelines.params import Parameters


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings, gamma = params.taca_train, params.taca.gamma if context.arm == "taca" else 1.0
    schedule = TemperatureSchedule(gamma=gamma, threshold=params.taca.threshold)
    cache = LatentCache.open(inputs["cache"])
    transformer = load_base(inputs["base"], components=("transformer",)).transformer
    trainable = add_lora(transformer, settings.rank, params.seed)
    embeds, pooled = cache.empty_prompt()
    ranks = {"seed": params.seed, "rank": context.rank, "world_size": context.world_size}
    task = VelocityTask(
        transformer,
        null_prompt_embeds=embeds,
        null_pooled=pooled,
        sigma_low=schedule.threshold,
        caption_dropout=settings.caption_dropout,
        schedule=schedule if gamma != 1.0 else None,
        **ranks,
    )
    batches = cache_batches(cache, batch_size=settings.training.batch, device=context.device, **ranks)
    fit(task, batches, settings.training.loop(), context, prefix="lora")
    save_lora(transformer, outputs["adapter"], schedule.to_mapping())
    return {"trainable_parameters": trainable}
