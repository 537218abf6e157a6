"""Bria 3.2, and Bria Fibo, whose text changes from block to block and whose pipeline masks its padding."""

from components.taca.families import Family

BRIA = Family(
    name="bria",
    transformer="BriaTransformer2DModel",
    stock_processors=("BriaAttnProcessor",),
    double={"transformer_blocks": "num_layers"},
    single={"single_transformer_blocks": "num_single_layers"},
    timesteps=(0.0, 1000.0),
    attention_kwargs="attention_kwargs",
)
BRIA_FIBO = Family(
    name="bria-fibo",
    transformer="BriaFiboTransformer2DModel",
    stock_processors=("BriaFiboAttnProcessor", "BriaAttnProcessor"),
    double={"transformer_blocks": "num_layers"},
    single={"single_transformer_blocks": "num_single_layers"},
    timesteps=(0.0, 1000.0),
    masks_padding=True,
    attention_kwargs="joint_attention_kwargs",
    lora_reader="FluxLoraLoaderMixin",
)
