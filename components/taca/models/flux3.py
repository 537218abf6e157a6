"""FLUX.3: text and image meet in its single-stream blocks only. A reference picture, behind the image, counts as image."""

from components.taca.families import Family

FLUX3 = Family(
    name="flux3",
    transformer="Flux3Transformer2DModel",
    stock_processors=("Flux3AttnProcessor",),
    single={"single_transformer_blocks": "num_single_layers"},
    lora_targets=r"single_transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)",
)
