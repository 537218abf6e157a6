"""ConsisID: CogVideoX's attention. The face's own cross-attention is not joint."""

from components.taca.families import Family

CONSISID = Family(
    name="consisid",
    transformer="ConsisIDTransformer3DModel",
    stock_processors=("CogVideoXAttnProcessor2_0",),
    single={"transformer_blocks": "num_layers"},
    attention="attn1",
    timesteps=(0.0, 1000.0),
    attention_kwargs="attention_kwargs",
    lora_targets=("attn1.to_k", "attn1.to_out.0", "attn1.to_q", "attn1.to_v"),
    lora_reader="CogVideoXLoraLoaderMixin",
)
