"""HiDream-I1: behind the image, the text of T5 and twice that of Llama, of one of its layers and of the block's own."""

from typing import Any

from components.taca.families import Arguments, Family
from components.taca.placement import Contiguous, Placement


def _placement(config: Any, arguments: Arguments, padding: bool) -> Placement:
    t5, llama = arguments["encoder_hidden_states_t5"], arguments["encoder_hidden_states_llama3"]
    return Contiguous(slice(-(t5.shape[1] + 2 * llama[0].shape[1]), None))


HIDREAM = Family(
    name="hidream",
    transformer="HiDreamImageTransformer2DModel",
    negative="negative_prompt_embeds_t5",
    stock_processors=("HiDreamAttnProcessor",),
    double={"double_stream_blocks": "num_layers"},
    single={"single_stream_blocks": "num_single_layers"},
    attention="block.attn1",
    timestep_argument="timesteps",
    timesteps=(0.0, 1000.0),
    text=("encoder_hidden_states_t5",),
    placement=_placement,
    attention_kwargs="attention_kwargs",
    lora_targets=tuple(f"attn1.to_{name}" for name in ("k", "k_t", "out", "out_t", "q", "q_t", "v", "v_t")),
    lora_reader="HiDreamImageLoraLoaderMixin",
)
