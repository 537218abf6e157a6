"""CogView3-Plus. Its timestep is a step of diffusion, not a share of noise: 970 of 1,000 is nearer to pure noise than elsewhere."""

from components.taca.families import Family

COGVIEW3_PLUS = Family(
    name="cogview3-plus",
    transformer="CogView3PlusTransformer2DModel",
    stock_processors=("CogVideoXAttnProcessor2_0",),
    single={"transformer_blocks": "num_layers"},
    attention="attn1",
    timesteps=(0.0, 1000.0),
)
