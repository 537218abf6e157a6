"""PRX: the image attends to text that has no queries of its own and stays what the text encoder gave."""

from typing import Any

from components.taca.families import Arguments, Family
from components.taca.placement import ImageQueries, Placement


def _placement(config: Any, arguments: Arguments, padding: bool) -> Placement:
    return ImageQueries(slice(0, arguments["encoder_hidden_states"].shape[1]))


PRX = Family(
    name="prx",
    transformer="PRXTransformer2DModel",
    stock_processors=("PRXAttnProcessor2_0",),
    double={"blocks": "depth"},
    attention="attention",
    placement=_placement,
    image_queries_only=True,
    text_mask="attention_mask",
    masks_padding=True,
)
