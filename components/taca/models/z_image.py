"""Z-Image: in each sample the image, then the text, each filled up to a multiple of 32 tokens.

Its timestep runs from 0, pure noise, to 1. Its refiners of noise and of text are not joint.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.errors import ParameterError
from components.taca.families import Arguments, Batch, Conventions, Family
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


def _max_text_tokens(config: Mapping[str, Any]) -> int:
    return 512


def _embed(pipe: Any, captions: list[str], length: int) -> dict[str, Tensor]:
    """Embed captions padded to `length`; the pipeline itself has a list of tensors without padding."""
    embeds, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=length)
    lengths = torch.tensor([[len(text)] for text in embeds], device=embeds[0].device)
    mask = torch.arange(length, device=lengths.device)[None] < lengths
    return {
        "prompt_embeds": torch.stack([F.pad(text, (0, 0, 0, length - len(text))) for text in embeds]),
        "text_mask": mask,
    }


def _guidance(pipe: Any, scale: float, embedded: float) -> dict[str, Any]:
    return {"guidance_scale": scale - 1}  # its formula is conditional + scale (conditional - unconditional)


def _velocity(transformer: Any, noisy: Tensor, timestep: Tensor, batch: Batch) -> Tensor:
    """Call the transformer with lists of one-frame latents (C, 1, H, W) and of texts; it predicts the velocity's negative."""
    words = zip(batch["prompt_embeds"].to(noisy.dtype), batch["text_mask"], strict=True)
    texts = [embeds[mask] for embeds, mask in words]
    predicted, *_ = transformer(list(noisy.unsqueeze(2)), timestep, texts, return_dict=False)
    return -torch.stack(predicted).squeeze(2)


Z_IMAGE = Family(
    name="z-image",
    transformer="ZImageTransformer2DModel",
    stock_processors=("ZSingleStreamAttnProcessor",),
    single={"layers": "n_layers"},
    attention="attention",
    timestep_argument="t",
    timesteps=(1.0, 0.0),
    text=("cap_feats",),
    placement=_placement,
    attention_kwargs="joint_attention_kwargs",
    lora_targets=r"layers\.\d+\.attention\.(to_q|to_k|to_v|to_out\.0)",
    lora_reader="ZImageLoraLoaderMixin",
    conventions=Conventions(
        pipeline="ZImagePipeline",
        text_parts=("text_encoder", "tokenizer"),
        length_tokenizer="tokenizer",
        max_text_tokens=_max_text_tokens,
        embed_captions=_embed,
        guidance_arguments=_guidance,
        velocity=_velocity,
        packed=False,
        rounds_timesteps=False,
    ),
)
