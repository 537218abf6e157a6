"""Ovis-Image."""

from components.taca.families import Family

OVIS_IMAGE = Family(
    name="ovis-image",
    transformer="OvisImageTransformer2DModel",
    stock_processors=("OvisImageAttnProcessor",),
    double={"transformer_blocks": "num_layers"},
    single={"single_transformer_blocks": "num_single_layers"},
    attention_kwargs="joint_attention_kwargs",
)
