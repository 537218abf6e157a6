"""Batches of people drawn afresh for the small model: pixels for its VAE, latents with captions for its transformer."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.persons.drawn.fresh import FreshPeople, stacked
from components.taca.conventions import encode_pictures, image_positions, picture_multiple, text_length
from components.taca.toy.training import token_ids
from components.training.numbered import OncePerSample, part_of
from components.training.randomness import generator

if TYPE_CHECKING:
    from diffusers import FluxPipeline


def fresh_pixels(
    people: FreshPeople, training: OncePerSample, *, rank: int = 0, world_size: int = 1
) -> Callable[[int], dict[str, Tensor]]:
    """Return `batches(step)` for `AutoencoderTask`, each picture of which is drawn for this step."""

    def batch(step: int) -> dict[str, Tensor]:
        return {"pixels": stacked(people.people(part_of(training.numbers(step), rank, world_size)))}

    return batch


def fresh_latents(
    pipe: "FluxPipeline", people: FreshPeople, training: OncePerSample, *, rank: int = 0, world_size: int = 1
) -> Callable[[int], dict[str, Tensor]]:
    """Return `batches(step)` for `TextToImageTask`: people drawn for this step, encoded by the VAE, and their captions."""
    positions = image_positions(*(side // picture_multiple(pipe) for side in (people.height, people.width)))
    empty = token_ids(pipe, [""])

    def batch(step: int) -> dict[str, Tensor]:
        drawn = people.people(part_of(training.numbers(step), rank, world_size))
        return caption_batch(pipe, stacked(drawn), [person.caption for person in drawn], positions, empty)

    return batch


def fresh_generated(
    pipe: "FluxPipeline",
    people: FreshPeople,
    training: OncePerSample,
    *,
    steps: int,
    rank: int = 0,
    world_size: int = 1,
) -> Callable[[int], dict[str, Tensor]]:
    """Return `batches(step)` for `DecoderTask`: people drawn for this step, and what the pipeline generates for their captions.

    `steps` of the sampler, without guidance. The noise of a picture depends on the stream's seed and the person's number.
    """
    from diffusers import FluxPipeline

    vae = pipe.vae.config

    def batch(step: int) -> dict[str, Tensor]:
        numbers = part_of(training.numbers(step), rank, world_size)
        drawn = people.people(numbers)
        packed = pipe(
            [person.caption for person in drawn],
            height=people.height,
            width=people.width,
            num_inference_steps=steps,
            guidance_scale=1.0,
            generator=[generator(people.seed, people.name, number) for number in numbers],
            max_sequence_length=text_length(pipe),
            output_type="latent",
        ).images
        latents = FluxPipeline._unpack_latents(packed, people.height, people.width, pipe.vae_scale_factor)
        return {"pixels": stacked(drawn), "latents": latents / vae.scaling_factor + vae.shift_factor}

    return batch


def caption_batch(
    pipe: "FluxPipeline", pixels: Tensor, captions: list[str], positions: Tensor, empty: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return a batch for `TextToImageTask` of pictures uint8 (B, 3, H, W) and their captions."""
    device = next(pipe.vae.parameters()).device
    with torch.no_grad():
        latents = encode_pictures(pipe, pixels.to(device))
    return {
        "latents": latents,
        "img_ids": positions,
        **token_ids(pipe, captions),
        "empty_clip_ids": empty["clip_ids"][0],
        "empty_t5_ids": empty["t5_ids"][0],
    }
