"""Krea 2. The blocks that fuse its text encoder's layers attend to text alone, and are not joint."""

from components.taca.families import Family

KREA2 = Family(
    name="krea2",
    transformer="Krea2Transformer2DModel",
    stock_processors=("Krea2AttnProcessor",),
    single={"transformer_blocks": "num_layers"},
    text_mask="encoder_attention_mask",
    masks_padding=True,
    attention_kwargs="attention_kwargs",
    lora_targets=r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)",
    lora_reader="Krea2LoraLoaderMixin",
)
