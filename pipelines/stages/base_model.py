"""Provide the text-to-image model that is adapted: train a small FLUX pipeline, or pin a published one."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from components.persons.shards import PersonDataset
from components.taca.conventions import encode_pictures, image_positions, picture_multiple
from components.taca.reference import copy_folder, write_reference
from components.taca.toy.autoencoder import AutoencoderTask, pixel_batches, psnr, reconstruct, set_latent_scale
from components.taca.toy.config import TinyConfig
from components.taca.toy.pipeline import build_tiny_pipeline, word_vocabulary
from components.taca.toy.training import TextToImageTask, base_batches
from components.training.loop import fit
from pipelines.engine.context import StageContext
from pipelines.params import Parameters
from pipelines.stages.parts.unknown_words import print_unknown_words


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings = params.base_model
    root = inputs["people"].parents[1]  # the workspace
    if settings.folder is not None and (settings.sha256 is not None or (root / settings.folder).is_dir()):
        copy_folder(root / settings.folder, outputs["base_weights"], settings.sha256)
        reference = write_reference(outputs["base_weights"], outputs["base"])
        print_unknown_words(outputs["base_weights"], PersonDataset(inputs["people"]))
        return {"files": len(reference["files"])}
    if settings.source != "tiny":
        revision = settings.pinned_revision()
        outputs["base_weights"].mkdir()
        (outputs["base_weights"] / "PUBLISHED").write_text(f"{settings.source} at {revision}: never copied\n")
        reference = write_reference(settings.source, outputs["base"], revision=revision)
        return {"files": len(reference["files"])}

    people, size = PersonDataset(inputs["people"]), params.pictures
    rows = people.needed_rows(split="train", form="short")
    captions = rows.column("caption")
    pixels = people.pixels(rows.column("image_id"), size.height, size.width)
    config = TinyConfig(**asdict(settings.tiny))
    pipe = build_tiny_pipeline(config, word_vocabulary(captions), params.seed)
    ranks = {"seed": params.seed, "rank": context.rank, "world_size": context.world_size}

    images = pixel_batches(pixels, batch_size=settings.autoencoder.batch, **ranks)
    fit(AutoencoderTask(pipe.vae, **ranks), images, settings.autoencoder, context.phase("vae"), prefix="vae")
    set_latent_scale(pipe.vae, pixels.split(256))
    held_out = people.pixels(people.needed_rows(split="val", form="short").column("image_id"), size.height, size.width)
    quality = float(psnr(held_out, reconstruct(pipe.vae, held_out)).mean())

    latents = torch.cat([encode_pictures(pipe, part) for part in pixels.split(256)])
    positions = image_positions(*(side // picture_multiple(pipe) for side in (size.height, size.width)))
    pairs = base_batches(pipe, latents, positions, captions, batch_size=settings.training.batch, **ranks)
    task = TextToImageTask(pipe, caption_dropout=settings.caption_dropout, shift=config.shift, **ranks)
    fit(task, pairs, settings.training, context.phase("flow"), prefix="flow")

    if context.rank == 0:  # transformers writes nothing on another rank: the folder would be incomplete
        pipe.save_pretrained(outputs["base_weights"], safe_serialization=True)
        write_reference(outputs["base_weights"], outputs["base"])
    parameters = sum(parameter.numel() for parameter in pipe.transformer.parameters())
    return {"vae_psnr": quality, "transformer_parameters": parameters}
