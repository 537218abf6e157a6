"""FLUX.2 dev and klein. Reference pictures count as image; klein may cache their keys, and then they see only themselves."""

from dataclasses import dataclass
from typing import Any

from components.taca.config import Queries
from components.taca.families import Arguments, Family
from components.taca.placement import Block, Placement, segments


@dataclass(frozen=True)
class _BeforeReferences(Placement):
    """Text first, in queries and keys. references: the reference tokens that attend to themselves, in a call of their own."""

    text: int
    references: int

    def block(self, queries: Queries, rows: int, keys: int) -> Block | None:
        if self.references and keys == self.references:
            return None
        if queries == "text":
            return Block(slice(self.text, keys), segments([slice(0, self.text)], rows))
        return Block(slice(0, self.text), segments([slice(self.text, rows)], rows))


def _placement(config: Any, arguments: Arguments, padding: bool) -> Placement:
    references = arguments.get("num_ref_tokens", 0) if arguments.get("kv_cache_mode") == "extract" else 0
    return _BeforeReferences(arguments["encoder_hidden_states"].shape[1], references)


FLUX2 = Family(
    name="flux2",
    transformer="Flux2Transformer2DModel",
    stock_processors=(
        "Flux2AttnProcessor",
        "Flux2ParallelSelfAttnProcessor",
        "Flux2KVAttnProcessor",
        "Flux2KVParallelSelfAttnProcessor",
    ),
    double={"transformer_blocks": "num_layers"},
    single={"single_transformer_blocks": "num_single_layers"},
    placement=_placement,
    attention_kwargs="joint_attention_kwargs",
    lora_reader="Flux2LoraLoaderMixin",
)
