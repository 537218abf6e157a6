"""Motif-Video: the last single-stream blocks decode, and join two streams of the video without text."""

from typing import Any

from components.taca.families import Family


def _single_blocks_with_text(config: Any) -> int:
    count: int = config.num_single_layers - config.num_decoder_layers
    return count


MOTIF_VIDEO = Family(
    name="motif-video",
    transformer="MotifVideoTransformer3DModel",
    stock_processors=("MotifVideoAttnProcessor2_0",),
    double={"transformer_blocks": "num_layers"},
    single={"single_transformer_blocks": _single_blocks_with_text},
    timesteps=(0.0, 1000.0),
    text_first=False,
    text_mask="encoder_attention_mask",
    masks_padding=True,
    attention_kwargs="attention_kwargs",
)
