"""Train the small FLUX pipeline on people drawn afresh, in the latents of the pre-trained VAE."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.persons.drawn.captions import SHORT_VOCABULARY
from components.persons.drawn.fresh import FreshPeople
from components.taca.toy.config import TinyConfig
from components.taca.toy.fresh_batches import fresh_latents
from components.taca.toy.pipeline import build_tiny_pipeline
from components.taca.toy.training import TextToImageTask
from components.training.loop import fit
from pipelines.engine.context import StageContext
from pipelines.params import PretrainingParameters


def run(
    params: PretrainingParameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    from diffusers import AutoencoderKL

    settings, size = params.pretrain_generator, params.pictures
    vae = AutoencoderKL.from_pretrained(inputs["autoencoder"], use_safetensors=True)
    config = TinyConfig(
        width=settings.width,
        heads=settings.heads,
        double_blocks=settings.double_blocks,
        single_blocks=settings.single_blocks,
        latent_channels=vae.config.latent_channels,
        vae_channels=tuple(vae.config.block_out_channels),
    )
    pipe = build_tiny_pipeline(config, SHORT_VOCABULARY, params.seed)
    # Into the new VAE: the one that was read would write the path that it was read from into its config.
    pipe.vae.load_state_dict(vae.state_dict())
    pipe.vae.register_to_config(shift_factor=vae.config.shift_factor, scaling_factor=vae.config.scaling_factor)
    pipe.vae.to(context.device)
    people = FreshPeople(params.seed, "pretrain_generator", settings.presets, height=size.height, width=size.width)
    ranks = {"rank": context.rank, "world_size": context.world_size}
    training = settings.training
    task = TextToImageTask(
        pipe, seed=params.seed, caption_dropout=settings.caption_dropout, shift=settings.shift, **ranks
    )
    fit(task, fresh_latents(pipe, people, training, **ranks), training, context, prefix="flow")
    if context.rank == 0:  # transformers writes nothing on another rank
        pipe.save_pretrained(outputs["generator"], safe_serialization=True)
    return {"pictures": training.samples, "parameters": sum(p.numel() for p in pipe.transformer.parameters())}
