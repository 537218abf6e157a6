"""CogVideoX. Its timestep is a step of diffusion, not a share of noise: choose its threshold separately."""

from components.taca.families import Family

COGVIDEOX = Family(
    name="cogvideox",
    transformer="CogVideoXTransformer3DModel",
    stock_processors=("CogVideoXAttnProcessor2_0",),
    single={"transformer_blocks": "num_layers"},
    attention="attn1",
    timesteps=(0.0, 1000.0),
    attention_kwargs="attention_kwargs",
    lora_targets=("attn1.to_k", "attn1.to_out.0", "attn1.to_q", "attn1.to_v"),
    lora_reader="CogVideoXLoraLoaderMixin",
)
