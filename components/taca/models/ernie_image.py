"""ERNIE-Image."""

from components.taca.families import Family

ERNIE_IMAGE = Family(
    name="ernie-image",
    transformer="ErnieImageTransformer2DModel",
    negative="uncond_text_hiddens",
    stock_processors=("ErnieImageSingleStreamAttnProcessor",),
    single={"layers": "num_layers"},
    attention="self_attention",
    timesteps=(0.0, 1000.0),
    text=("text_bth",),
    text_first=False,
    masks_padding=True,
    lora_targets=tuple(f"self_attention.{name}" for name in ("to_k", "to_out.0", "to_q", "to_v")),
    lora_reader="ErnieImageLoraLoaderMixin",
)
