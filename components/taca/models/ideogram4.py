"""Ideogram 4: an indicator says which tokens are text. Its timestep runs from 0, pure noise, to 1.

The unconditional half of its guidance is computed by a transformer of its own, without text: TACA is never in it.
"""

from typing import Any

import torch

from components.taca.families import Arguments, Family
from components.taca.placement import Masked, Placement


def _placement(config: Any, arguments: Arguments, padding: bool) -> Placement:
    from diffusers.models.transformers.transformer_ideogram4 import LLM_TOKEN_INDICATOR

    text = arguments["indicator"] == LLM_TOKEN_INDICATOR  # (B, S)
    if torch.compiler.is_compiling():  # a compiled graph cannot depend on where it ends
        return Masked(text)
    places = torch.arange(1, text.shape[1] + 1, device=text.device)
    return Masked(text, int((text * places).max()))


IDEOGRAM4 = Family(
    name="ideogram4",
    transformer="Ideogram4Transformer2DModel",
    stock_processors=("Ideogram4AttnProcessor",),
    single={"layers": "num_layers"},
    attention="attention",
    timesteps=(1.0, 0.0),
    placement=_placement,
    masks_padding=True,
    attention_kwargs="attention_kwargs",
    lora_targets=("attention.to_k", "attention.to_out.0", "attention.to_q", "attention.to_v"),
    lora_reader="Ideogram4LoraLoaderMixin",
)
