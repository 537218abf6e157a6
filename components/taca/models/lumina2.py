"""Lumina 2: each sample's text without its padding, then the image. Its timestep runs from 0, pure noise, to 1."""

from typing import Any

from components.taca.families import Arguments, Family
from components.taca.placement import Placement, Spans


def _placement(config: Any, arguments: Arguments, padding: bool) -> Placement:
    mask = arguments["encoder_attention_mask"]
    return Spans(tuple((0, length) for length in mask.sum(dim=1).tolist()), mask.device)


LUMINA2 = Family(
    name="lumina2",
    transformer="Lumina2Transformer2DModel",
    stock_processors=("Lumina2AttnProcessor2_0",),
    single={"layers": "num_layers"},
    timesteps=(1.0, 0.0),
    placement=_placement,
    masks_padding=True,
    attention_kwargs="attention_kwargs",
    # The refiners of text and noise, which are not joint, have layers of the same names.
    lora_targets=r"layers\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)",
    lora_reader="Lumina2LoraLoaderMixin",
)
