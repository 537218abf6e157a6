"""Train a LoRA above the threshold: `taca` under the temperature schedule, `lora` at gamma = 1 (the control)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.taca.batches import cache_batches
from components.taca.cache import LatentCache
from components.taca.lora import add_lora, save_lora
from components.taca.model_schedule import resolve_schedule
from components.taca.reference import DTYPES, load_base
from components.taca.schedule import TemperatureSchedule
from components.taca.velocity import VelocityTask
from components.training.accumulation import require_even, virtual_ranks
from components.training.distribution import repeated_blocks
from components.training.loop import fit
from pipelines.engine.context import StageContext
from pipelines.params import Parameters


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings = params.taca_train
    training = settings.training
    require_even(training.batch, context, training.accumulate)
    cache = LatentCache.open(inputs["cache"])
    pipe = load_base(inputs["base"], components=("transformer", "scheduler"), dtype=DTYPES[settings.base_dtype])
    taca = resolve_schedule(params.taca, pipe, tokens=cache.tokens)
    schedule = taca if context.arm == "taca" else TemperatureSchedule(gamma=1.0, threshold=taca.active_from)
    transformer = pipe.transformer
    trainable = add_lora(transformer, settings.rank, params.seed, alpha=settings.alpha, targets=settings.targets)
    if settings.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    null_caption: dict[str, Any] = cache.null_caption()
    task = VelocityTask(
        transformer,
        **null_caption,
        sigma_low=schedule.active_from,
        caption_dropout=settings.caption_dropout,
        guidance=settings.embedded_guidance,
        schedule=schedule if schedule.gamma != 1 else None,
        seed=params.seed,
        rank=context.rank,
        world_size=context.world_size,
    )
    batches = [
        cache_batches(cache, batch_size=training.batch, seed=params.seed, device=context.device, **ranks)
        for ranks in virtual_ranks(context, training.accumulate)
    ]
    fit(task, batches, training, context, prefix="lora", blocks=repeated_blocks(transformer))
    save_lora(transformer, outputs["adapter"], schedule.to_mapping())
    return {"trainable_parameters": trainable}
