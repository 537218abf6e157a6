"""Fine-tune the decoder of the pre-trained generator's VAE against a discriminator, on its own pictures."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.persons.drawn.fresh import FreshPeople
from components.taca.toy.decoder import DecoderTask
from components.taca.toy.fresh_batches import fresh_generated
from components.training.loop import fit
from pipelines.engine.context import StageContext
from pipelines.params import PretrainingParameters

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


def run(
    params: PretrainingParameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    from diffusers import FluxPipeline
    from safetensors.torch import save_file

    settings, size = params.pretrain_decoder, params.pictures
    pipe = FluxPipeline.from_pretrained(inputs["generator"], use_safetensors=True).to(context.device)
    pipe.set_progress_bar_config(disable=True)
    people = FreshPeople(params.seed, "pretrain_decoder", settings.presets, height=size.height, width=size.width)
    ranks = {"rank": context.rank, "world_size": context.world_size}
    task = DecoderTask(pipe.vae, seed=params.seed, weight=settings.weight, begin=settings.begin)
    batches = fresh_generated(pipe, people, settings.training, steps=settings.sampler_steps, **ranks)
    fit(task, batches, settings.training, context, prefix="decoder")
    if context.rank == 0:
        # All but the VAE's weights as it is: a pipeline that was read would write the path that it was read from.
        shutil.copytree(inputs["generator"], outputs["decoder"])
        save_file(pipe.vae.state_dict(), outputs["decoder"] / WEIGHTS, {"format": "pt"})
    return {"pictures": settings.training.samples}
