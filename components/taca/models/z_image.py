"""Z-Image: in each sample the image, then the text, each filled up to a multiple of 32 tokens.

Its timestep runs from 0, pure noise, to 1. Its refiners of noise and of text are not joint.
"""

from typing import Any

from torch import Tensor

from components.errors import ParameterError
from components.taca.families import Arguments, Family
from components.taca.placement import Placement, Spans

_MULTIPLE = 32  # diffusers' SEQ_MULTI_OF


def _placement(config: Any, arguments: Arguments, padding: bool) -> Placement:
    pictures, texts = arguments["x"], arguments["cap_feats"]
    if not isinstance(pictures[0], Tensor):
        raise ParameterError("TACA: Z-Image with several pictures in a sample (Omni) is not supported")
    patch, frames = arguments.get("patch_size", 2), arguments.get("f_patch_size", 1)
    spans = []
    for picture, text in zip(pictures, texts, strict=True):
        _, depth, height, width = picture.shape
        start = _filled((depth // frames) * (height // patch) * (width // patch))
        spans.append((start, start + (_filled(len(text)) if padding else len(text))))
    return Spans(tuple(spans), pictures[0].device)


def _filled(length: int) -> int:
    return -(-length // _MULTIPLE) * _MULTIPLE


Z_IMAGE = Family(
    name="z-image",
    transformer="ZImageTransformer2DModel",
    stock_processors=("ZSingleStreamAttnProcessor",),
    double={"layers": "n_layers"},
    attention="attention",
    timestep_argument="t",
    timesteps=(1.0, 0.0),
    text=("cap_feats",),
    placement=_placement,
    attention_kwargs="joint_attention_kwargs",
    lora_targets=r"layers\.\d+\.attention\.(to_q|to_k|to_v|to_out\.0)",
    lora_reader="ZImageLoraLoaderMixin",
)
