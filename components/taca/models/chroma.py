"""Chroma: FLUX's attention without CLIP and distilled guidance, and with a text mask."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.taca.families import Batch, Conventions, Family
from components.taca.models.flux import token_positions


def _forward_arguments(batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    # Over text and image, and in the dtype that ChromaPipeline passes it in, so that training and sampling attend alike.
    mask = F.pad(batch["text_mask"].to(dtype), (0, batch["latents"].shape[1]), value=1)
    return {"attention_mask": mask, **token_positions(batch, dtype)}


def _max_text_tokens(config: Mapping[str, Any]) -> int:
    return 512


def _embed(pipe: Any, captions: list[str], length: int) -> dict[str, Tensor]:
    embeds, _, mask, *_ = pipe.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=length)
    return {"prompt_embeds": embeds, "text_mask": mask.bool()}


CHROMA = Family(
    name="chroma",
    transformer="ChromaTransformer2DModel",
    stock_processors=("FluxAttnProcessor",),
    double={"transformer_blocks": "num_layers"},
    single={"single_transformer_blocks": "num_single_layers"},
    text_mask="attention_mask",  # over text and image; Chroma's text keeps one padding token in it
    attention_kwargs="joint_attention_kwargs",
    lora_reader="FluxLoraLoaderMixin",
    conventions=Conventions(
        pipeline="ChromaPipeline",
        text_parts=("text_encoder", "tokenizer"),
        length_tokenizer="tokenizer",
        max_text_tokens=_max_text_tokens,
        embed_captions=_embed,
        forward_arguments=_forward_arguments,
    ),
)
