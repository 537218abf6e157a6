"""Qwen-Image 2.1: text and reference pictures are a causal prefix of the image, the same at every step, and cached.

Only the drawn image's queries are adjusted: the prefix must not depend on gamma, and its cached keys are scaled when they are used.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from components.taca.config import Queries
from components.taca.families import Arguments, Family
from components.taca.placement import Block, Placement, segments


@dataclass(frozen=True)
class _CausalPrefix(Placement):
    """text: bool (1, S), over the whole sequence. drawn: the number of tokens of the drawn image, the last ones."""

    text: Tensor
    drawn: int

    def block(self, queries: Queries, rows: int, keys: int) -> Block | None:
        if keys < self.text.shape[1] or rows != self.drawn:
            return None  # a part of the prefix
        return Block(self.text, segments([slice(0, rows)], rows))


def _placement(config: Any, arguments: Arguments, padding: bool) -> Placement:
    from diffusers.models.transformers.transformer_qwenimage21 import _IMG_TOKENS_PER_SLOT

    pictures = arguments["img_mask"][:1]  # one slot for several tokens of a picture; the same for all samples
    text = (~pictures).repeat_interleave(1 + (_IMG_TOKENS_PER_SLOT - 1) * pictures[0].long(), dim=1)
    frames, height, width = arguments["img_shapes"][0][-1]
    return _CausalPrefix(text, frames * height * width)


QWEN_IMAGE21 = Family(
    name="qwen-image21",
    transformer="QwenImage21Transformer2DModel",
    stock_processors=("QwenImage21AttnProcessor",),
    single={"transformer_blocks": "num_layers"},
    placement=_placement,
    image_queries_only=True,
    masks_padding=True,
    attention_kwargs="attention_kwargs",
    lora_targets=("attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_v"),
    lora_reader="QwenImageLoraLoaderMixin",
)
