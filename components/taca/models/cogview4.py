"""CogView4."""

from components.taca.families import Family

COGVIEW4 = Family(
    name="cogview4",
    transformer="CogView4Transformer2DModel",
    stock_processors=("CogView4AttnProcessor",),
    single={"transformer_blocks": "num_layers"},
    attention="attn1",
    timesteps=(0.0, 1000.0),
    text_mask="attention_mask",
    attention_kwargs="attention_kwargs",
    lora_targets=("attn1.to_k", "attn1.to_out.0", "attn1.to_q", "attn1.to_v"),
    lora_reader="CogView4LoraLoaderMixin",
)
