"""AuraFlow."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from components.taca.families import Conventions, Family
from components.taca.processors import Adjustment, TemperatureProcessor
from components.taca.sampler import nothing


class AuraFlowTemperatureProcessor(TemperatureProcessor):
    """Replaces `AuraFlowAttnProcessor2_0` in double- and single-stream blocks: text first, a special scale, and a mask that is
    ignored, as in the original."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        taca: Adjustment | None = None,
    ) -> Any:
        if taca is None:
            return self.original(attn, hidden_states, encoder_hidden_states)
        return self.attend(attn, taca, hidden_states, encoder_hidden_states, scale=attn.scale)


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
    stock_processor="AuraFlowAttnProcessor2_0",
    processor=AuraFlowTemperatureProcessor,
    layers=("num_mmdit_layers", "num_single_dit_layers"),
    timestep_scale=1.0,
    attention_kwargs="attention_kwargs",
    prefix_tokens=8,
    checkpointed_kwargs="attention_kwargs",
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
