"""AuraFlow."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from components.taca.families import Conventions, Family
from components.taca.sampler import nothing


def _max_text_tokens(config: Mapping[str, Any]) -> int:
    return 256


def _embed(pipe: Any, captions: list[str], length: int) -> dict[str, Tensor]:
    embeds, *_ = pipe.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=length)
    return {"prompt_embeds": embeds}  # zeros where there is padding; AuraFlow's transformer takes no mask


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    """Scale without the VAE's shift, as the pipeline decodes."""
    return vae.encode(pixels.to(vae.dtype)).latent_dist.mean * vae.config.scaling_factor


AURAFLOW = Family(
    name="auraflow",
    transformer="AuraFlowTransformer2DModel",
    stock_processors=("AuraFlowAttnProcessor2_0",),
    double={"joint_transformer_blocks": "num_mmdit_layers"},
    single={"single_transformer_blocks": "num_single_dit_layers"},
    attention_kwargs="attention_kwargs",
    prefix_tokens=8,
    lora_reader="AuraFlowLoraLoaderMixin",
    conventions=Conventions(
        pipeline="AuraFlowPipeline",
        text_parts=("text_encoder", "tokenizer"),
        length_tokenizer="tokenizer",
        max_text_tokens=_max_text_tokens,
        embed_captions=_embed,
        encode_pixels=_latents,
        packed=False,
        sampler_arguments=nothing,
    ),
)
