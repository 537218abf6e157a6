"""OmniGen: a causal prompt of text and pictures before the image. Its timestep runs from 0, pure noise, to 1."""

from typing import Any

import torch

from components.taca.families import Arguments, Family
from components.taca.placement import Masked, Placement


def _placement(config: Any, arguments: Arguments, padding: bool) -> Placement:
    """All that is not text counts as image: pictures in the prompt, and the token of time behind it."""
    prompt, mask = arguments["input_ids"], arguments["attention_mask"]  # (B, P); (B, S, S), 1 where a row sees a column
    length = 0 if prompt is None else prompt.shape[1]
    text = torch.zeros(mask.shape[:2], dtype=torch.bool, device=mask.device)
    text[:, :length] = mask[:, -1, :length] > 0  # what the image sees: not the padding
    for sample, pictures in arguments["input_image_sizes"].items():
        for start, stop in pictures:
            text[sample, start:stop] = False
    return Masked(text, length)


OMNIGEN = Family(
    name="omnigen",
    transformer="OmniGenTransformer2DModel",
    negative="num_cfg",
    stock_processors=("OmniGenAttnProcessor2_0",),
    single={"layers": "num_layers"},
    attention="self_attn",
    timesteps=(1.0, 0.0),
    text=("hidden_states",),
    placement=_placement,
    image_queries_only=True,
    masks_padding=True,
)
