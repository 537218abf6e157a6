"""FLUX.1 dev, schnell, Fill and Kontext, whose reference image counts as image."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from components.taca.families import Batch, Conventions, Family
from components.taca.sampler import spaced_levels_unless_flow


def token_positions(batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    """Rotary positions for the forward: those of the image without the axis that collation adds, and zeros for the text."""
    ids = batch["img_ids"]
    text = torch.zeros(batch["prompt_embeds"].shape[1], 3, device=ids.device, dtype=ids.dtype)
    return {"img_ids": ids[0] if ids.ndim == 3 else ids, "txt_ids": text}


def _max_text_tokens(config: Mapping[str, Any]) -> int:
    # Timestep-distilled schnell was trained with 256 (Black Forest Labs' sampling code); it has no embedded guidance.
    return 512 if config.get("guidance_embeds", True) else 256


def _embed(pipe: Any, captions: list[str], length: int) -> dict[str, Tensor]:
    embeds, pooled, _ = pipe.encode_prompt(captions, max_sequence_length=length)
    return {"prompt_embeds": embeds, "pooled": pooled}


def _guidance(pipe: Any, scale: float, embedded: float) -> dict[str, Any]:
    return {"true_cfg_scale": scale, "guidance_scale": embedded}  # models that are not distilled ignore `embedded`


FLUX = Family(
    name="flux",
    transformer="FluxTransformer2DModel",
    stock_processors=("FluxAttnProcessor",),
    double={"transformer_blocks": "num_layers"},
    single={"single_transformer_blocks": "num_single_layers"},
    attention_kwargs="joint_attention_kwargs",
    lora_reader="FluxLoraLoaderMixin",
    conventions=Conventions(
        pipeline="FluxPipeline",
        text_parts=("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        length_tokenizer="tokenizer_2",
        max_text_tokens=_max_text_tokens,
        embed_captions=_embed,
        guidance_arguments=_guidance,
        forward_arguments=token_positions,
        sampler_arguments=spaced_levels_unless_flow,
    ),
)
