"""Captions, pictures and noise levels as a pipeline of diffusers gives them to its transformer.

All transformers see latents in patches of 2x2: FLUX and its kin get them packed into tokens (B, S, 4 C), SD3 and AuraFlow get
(B, C, H, W) and cut patches themselves.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.errors import DataError, ParameterError
from components.taca.registry import conventions_of
from components.taca.sampler import TICKS, sampler_timesteps

PATCH = 2


def text_length(pipe: Any) -> int:
    """Return the text length to call a pipeline with, its `max_sequence_length`."""
    conventions = conventions_of(pipe)
    limit = conventions.max_text_tokens(_transformer_config(pipe))
    tokenizer = getattr(pipe, conventions.length_tokenizer, None)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor of text and pictures has one
    return limit if tokenizer is None else min(limit, tokenizer.model_max_length)


def _transformer_config(pipe: Any) -> Mapping[str, Any]:
    """Return the config of a pipeline's transformer, from its folder where the transformer itself was not loaded; else {}."""
    if pipe.transformer is not None:
        config: Mapping[str, Any] = pipe.transformer.config
        return config
    file = Path(str(pipe.config.get("_name_or_path")), "transformer", "config.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def picture_multiple(pipe: Any) -> int:
    """Return the side of a patch in pixels, which both sides of a picture must be multiples of."""
    return PATCH * int(pipe.vae_scale_factor)


def _require_whole_patches(pipe: Any, height: int, width: int, error: type[Exception]) -> None:
    multiple = picture_multiple(pipe)
    if height % multiple or width % multiple:
        raise error(f"pictures of {height}x{width}: both sides must be multiples of {multiple} for this model")


@torch.no_grad()
def encode_captions(pipe: Any, captions: Sequence[str]) -> dict[str, Tensor]:
    """Embed captions for the transformer: `{"prompt_embeds": (N, T, D)}`, with "pooled" (N, P) and "text_mask" (N, T) bool if
    it takes them. T is the same for all captions."""
    return conventions_of(pipe).embed_captions(pipe, list(captions), text_length(pipe))


@torch.no_grad()
def encode_pictures(pipe: Any, pixels: Tensor) -> Tensor:
    """Encode pictures (B, 3, H, W), uint8 or float in [0, 1], to scaled latents of the VAE's dtype.

    Packed (B, S, 4 C) or (B, C, H / f, W / f), as the pipeline's transformer takes them, for a VAE of scale f; S = (H /
    2f) (W / 2f). The posterior mean is taken, so the result is a function of the picture. Raises `DataError` for a size
    that does not divide.
    """
    height, width = pixels.shape[-2:]
    _require_whole_patches(pipe, height, width, DataError)
    signed = signed_pixels(pixels.to(pipe.vae.device))
    return as_transformer_input(pipe, conventions_of(pipe).encode_pixels(pipe.vae, signed))


def signed_pixels(pixels: Tensor) -> Tensor:
    """Convert uint8 in 0..255, or float in 0..1, to float32 in [-1, 1], the input range of an `AutoencoderKL`."""
    return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels.float() * 2 - 1


def as_transformer_input(pipe: Any, latents: Tensor) -> Tensor:
    """Pack latents (B, C, H, W) to (B, S, 4 C) if the pipeline's transformer takes them so; else return them as they are."""
    return _patches(latents).flatten(2).transpose(1, 2).contiguous() if conventions_of(pipe).packed else latents


def as_call_input(pipe: Any, latents: Tensor) -> Tensor:
    """Return latents (B, C, H, W) as the pipeline's call takes them: packed like the transformer's, or before it packs them."""
    conventions = conventions_of(pipe)
    return _patches(latents) if conventions.packed and conventions.call_packs else as_transformer_input(pipe, latents)


def _patches(latents: Tensor) -> Tensor:
    """Cut latents into patches, (B, C, H, W) -> (B, 4 C, H / 2, W / 2), channels of a patch ordered as (C, row, column)."""
    cut = latents.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # (B, C, H / 2, 2, W / 2, 2)
    return cut.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def latent_shape(pipe: Any, height: int, width: int) -> tuple[int, int, int]:
    """Return (C, H, W) of a picture's latents before packing. Raises `ParameterError` for a size that does not divide."""
    _require_whole_patches(pipe, height, width, ParameterError)
    channels = pipe.transformer.config.in_channels
    if conventions_of(pipe).packed:
        channels //= PATCH * PATCH
    return channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor


def image_tokens(pipe: Any, height: int, width: int) -> int:
    """Return the number of image tokens of a picture of this size."""
    multiple = picture_multiple(pipe)
    return (height // multiple) * (width // multiple)


def image_positions(down: int, across: int) -> Tensor:
    """Return positions of latent tokens for rotary embedding: (S, 3) float32 of (0, row, column)."""
    ids = torch.zeros(down, across, 3)
    ids[..., 1] = torch.arange(down)[:, None]
    ids[..., 2] = torch.arange(across)[None, :]
    return ids.reshape(-1, 3)


def sampler_sigmas(pipe: Any, steps: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the noise levels that the transformer sees when the pipeline draws a picture of this size: (steps,) float32.

    dtype: that of the latents; some pipelines round timesteps to it. The pipeline's scheduler is not changed. Raises
    `ParameterError` for a scheduler that the pipeline cannot call.
    """
    conventions = conventions_of(pipe)
    tokens = image_tokens(pipe, height, width)
    timesteps = sampler_timesteps(pipe.scheduler, conventions.sampler_arguments, steps, tokens)
    return ((timesteps.to(dtype) if conventions.rounds_timesteps else timesteps) / TICKS).float()
