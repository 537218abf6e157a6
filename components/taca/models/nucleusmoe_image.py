"""NucleusMoE-Image: the image attends to text, behind it, that has no queries of its own."""

from typing import Any

from components.taca.families import Arguments, Family
from components.taca.placement import ImageQueries, Placement


def _placement(config: Any, arguments: Arguments, padding: bool) -> Placement:
    return ImageQueries(slice(-arguments["encoder_hidden_states"].shape[1], None))


NUCLEUSMOE_IMAGE = Family(
    name="nucleusmoe-image",
    transformer="NucleusMoEImageTransformer2DModel",
    stock_processors=("NucleusMoEAttnProcessor2_0",),
    double={"transformer_blocks": "num_layers"},
    placement=_placement,
    image_queries_only=True,
    text_mask="encoder_hidden_states_mask",
    masks_padding=True,
    attention_kwargs="attention_kwargs",
    lora_targets=tuple(f"attn.{name}" for name in ("add_k_proj", "add_v_proj", "to_k", "to_out.0", "to_q", "to_v")),
)
