"""EasyAnimate, with one text encoder or two."""

from components.taca.families import Family

EASYANIMATE = Family(
    name="easyanimate",
    transformer="EasyAnimateTransformer3DModel",
    stock_processors=("EasyAnimateAttnProcessor2_0",),
    double={"transformer_blocks": "num_layers"},
    double_until="mmdit_layers",
    attention="attn1",
    timesteps=(0.0, 1000.0),
    text=("encoder_hidden_states", "encoder_hidden_states_t5"),
)
