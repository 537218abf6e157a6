"""LongCat-Image."""

from components.taca.families import Family

LONGCAT_IMAGE = Family(
    name="longcat-image",
    transformer="LongCatImageTransformer2DModel",
    stock_processors=("LongCatImageAttnProcessor",),
    double={"transformer_blocks": "num_layers"},
    single={"single_transformer_blocks": "num_single_layers"},
)
