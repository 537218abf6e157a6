"""Qwen-Image, and Qwen-Image-Edit, whose reference image counts as image."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.taca.families import Batch, Conventions, Family


def _forward_arguments(batch: Batch, dtype: torch.dtype) -> dict[str, Any]:
    _, down, across = (int(last) + 1 for last in batch["img_ids"].flatten(0, -2).amax(0))
    return {
        "encoder_hidden_states_mask": batch["text_mask"],
        "img_shapes": [[(1, down, across)]] * len(batch["latents"]),
    }


def _max_text_tokens(config: Mapping[str, Any]) -> int:
    return 512


def _embed(pipe: Any, captions: list[str], length: int) -> dict[str, Tensor]:
    """Embed captions padded to `length`; the pipeline itself pads to the longest of its captions."""
    embeds, mask = pipe.encode_prompt(captions, max_sequence_length=length)
    mask = torch.ones(embeds.shape[:2], device=embeds.device) if mask is None else mask
    missing = length - embeds.shape[1]
    return {"prompt_embeds": F.pad(embeds, (0, 0, 0, missing)), "text_mask": F.pad(mask.bool(), (0, missing))}


def _guidance(pipe: Any, scale: float, embedded: float) -> dict[str, Any]:
    distilled = pipe.transformer.config.guidance_embeds
    return {"true_cfg_scale": scale, "guidance_scale": embedded if distilled else None}


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    """Encode with a VAE of videos, here of one frame, that has a mean and a deviation for each channel."""
    frames = vae.encode(pixels.to(vae.dtype)[:, :, None]).latent_dist.mean  # (B, C, 1, H / f, W / f)
    mean, deviation = (
        torch.tensor(values, device=frames.device, dtype=frames.dtype).view(1, -1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (frames[:, :, 0] - mean) / deviation


QWEN_IMAGE = Family(
    name="qwen-image",
    transformer="QwenImageTransformer2DModel",
    stock_processors=("QwenDoubleStreamAttnProcessor2_0",),
    double={"transformer_blocks": "num_layers"},
    attention_kwargs="attention_kwargs",
    text_mask="encoder_hidden_states_mask",
    lora_reader="QwenImageLoraLoaderMixin",
    conventions=Conventions(
        pipeline="QwenImagePipeline",
        text_parts=("text_encoder", "tokenizer"),
        length_tokenizer="tokenizer",
        max_text_tokens=_max_text_tokens,
        embed_captions=_embed,
        guidance_arguments=_guidance,
        encode_pixels=_latents,
        forward_arguments=_forward_arguments,
    ),
)
