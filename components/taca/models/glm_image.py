"""GLM-Image. Keys of reference pictures may come from a cache, before the text; they count as image."""

from dataclasses import dataclass
from typing import Any

from components.errors import ParameterError
from components.taca.config import Queries
from components.taca.families import Arguments, Family
from components.taca.placement import Block, Placement, segments


@dataclass(frozen=True)
class _BehindCachedKeys(Placement):
    """Cached keys, then text, then the image; the cached ones have no queries here."""

    text: int

    @property
    def text_tokens(self) -> int:  # type: ignore[override]
        return self.text

    def block(self, queries: Queries, rows: int, keys: int) -> Block | None:
        start = keys - rows
        if queries == "text":
            if start:
                raise ParameterError(
                    "TACA: queries = text needs the image in one piece; use it without cached pictures"
                )
            return Block(slice(self.text, keys), segments([slice(0, self.text)], rows))
        return Block(slice(start, start + self.text), segments([slice(self.text, rows)], rows))


def _placement(config: Any, arguments: Arguments, padding: bool) -> Placement:
    return _BehindCachedKeys(arguments["encoder_hidden_states"].shape[1])


GLM_IMAGE = Family(
    name="glm-image",
    transformer="GlmImageTransformer2DModel",
    stock_processors=("GlmImageAttnProcessor",),
    single={"transformer_blocks": "num_layers"},
    attention="attn1",
    timesteps=(-1.0, 999.0),
    placement=_placement,
    attention_kwargs="attention_kwargs",
    lora_targets=("attn1.to_k", "attn1.to_out.0", "attn1.to_q", "attn1.to_v"),
)
