"""Train the VAE of the small text-to-image model on people drawn afresh, and scale its latents."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.persons.drawn.captions import SHORT_VOCABULARY
from components.persons.drawn.fresh import FreshPeople, stacked
from components.taca.toy.autoencoder import AutoencoderTask, set_latent_scale
from components.taca.toy.config import TinyConfig
from components.taca.toy.fresh_batches import fresh_pixels
from components.taca.toy.pipeline import build_tiny_pipeline
from components.training.loop import fit
from pipelines.engine.context import StageContext
from pipelines.params import PretrainingParameters

SCALED_ON = 512
"""Pictures, beyond those of training, on which the spread of the latents is measured."""


def run(
    params: PretrainingParameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings, size = params.pretrain_autoencoder, params.pictures
    config = TinyConfig(latent_channels=settings.latent_channels, vae_channels=settings.channels)
    vae = build_tiny_pipeline(config, SHORT_VOCABULARY, params.seed).vae
    people = FreshPeople(params.seed, "pretrain_autoencoder", settings.presets, height=size.height, width=size.width)
    ranks = {"rank": context.rank, "world_size": context.world_size}
    training = settings.training
    task = AutoencoderTask(vae, seed=params.seed, latent_noise=settings.latent_noise, **ranks)
    fit(task, fresh_pixels(people, training, **ranks), training, context, prefix="vae")
    last = training.samples
    set_latent_scale(vae, [stacked(people.people(range(last, last + SCALED_ON)))])
    if context.rank == 0:  # diffusers writes nothing on another rank
        vae.save_pretrained(outputs["autoencoder"], safe_serialization=True)
    return {"pictures": training.samples, "parameters": sum(p.numel() for p in vae.parameters())}
