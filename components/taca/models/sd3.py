"""Stable Diffusion 3 and 3.5."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from components.taca.families import Conventions, Family
from components.taca.sampler import resolution_shift


def _max_text_tokens(config: Mapping[str, Any]) -> int:
    return 256


def _embed(pipe: Any, captions: list[str], length: int) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipe.encode_prompt(
        captions, None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    return {"prompt_embeds": embeds, "pooled": pooled}


SD3 = Family(
    name="sd3",
    transformer="SD3Transformer2DModel",
    stock_processors=("JointAttnProcessor2_0",),
    double={"transformer_blocks": "num_layers"},
    text_first=False,
    timesteps=(0.0, 1000.0),
    attention_kwargs="joint_attention_kwargs",
    lora_reader="SD3LoraLoaderMixin",
    conventions=Conventions(
        pipeline="StableDiffusion3Pipeline",
        text_parts=("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"),
        length_tokenizer="tokenizer_3",
        max_text_tokens=_max_text_tokens,
        prepended_text_tokens=77,  # CLIP's
        embed_captions=_embed,
        packed=False,
        sampler_arguments=resolution_shift,
        encoder_fallback=("text_encoder_3", "transformer"),
        rounds_timesteps=False,
    ),
)
