"""Mochi: each sample is attended to by itself, without the padding of its text. Its timestep runs from 0, pure noise, to 1,000."""

from typing import Any

from components.taca.families import Arguments, Family
from components.taca.placement import Contiguous, Placement


def _placement(config: Any, arguments: Arguments, padding: bool) -> Placement:
    frames, height, width = arguments["hidden_states"].shape[2:]
    image = frames * (height // config.patch_size) * (width // config.patch_size)
    return Contiguous(slice(image, None))


MOCHI = Family(
    name="mochi",
    transformer="MochiTransformer3DModel",
    stock_processors=("MochiAttnProcessor2_0",),
    double={"transformer_blocks": "num_layers"},
    attention="attn1",
    timesteps=(1000.0, 0.0),
    placement=_placement,
    by_sample=True,
    masks_padding=True,
    lora_targets=tuple(
        f"attn1.{name}"
        for name in ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_out.0", "to_q", "to_v")
    ),
    lora_reader="Mochi1LoraLoaderMixin",
)
