"""HunyuanVideo, its Framepack, HunyuanVideo 1.5 and HunyuanImage: text last, behind embeddings of a picture where there are any.

Their token refiners attend to text alone, and are not joint.
"""

from dataclasses import replace
from typing import Any

from components.taca.families import Arguments, Family
from components.taca.placement import Contiguous, Placement

_LORA_TARGETS = (
    r"(single_)?transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
)


def _framepack(config: Any, arguments: Arguments, padding: bool) -> Placement:
    """Behind the latents, their history and a picture's embeddings; the text of a single sample is cut to its length."""
    patches = {
        "hidden_states": (config.patch_size_t, config.patch_size, config.patch_size),
        "latents_clean": (1, 2, 2),
        "latents_history_2x": (2, 4, 4),  # each side is filled up to a multiple of the patch
        "latents_history_4x": (4, 8, 8),
    }
    image = arguments["image_embeds"].shape[1]
    for name, patch in patches.items():
        if arguments.get(name) is not None:
            frames, rows, columns = (
                -(-side // length) for side, length in zip(arguments[name].shape[2:], patch, strict=True)
            )
            image += frames * rows * columns
    return Contiguous(slice(image, None))


def _hunyuan_video15(config: Any, arguments: Arguments, padding: bool) -> Placement:
    """A picture's embeddings, the text for glyphs, the text, and padding; without a picture its embeddings are padding."""
    texts = [arguments["encoder_hidden_states"], arguments["encoder_hidden_states_2"]]
    if not arguments["image_embeds"].any():
        texts.append(arguments["image_embeds"])
    return Contiguous(slice(-sum(text.shape[1] for text in texts), None))


HUNYUAN_VIDEO = Family(
    name="hunyuan-video",
    transformer="HunyuanVideoTransformer3DModel",
    stock_processors=("HunyuanVideoAttnProcessor2_0",),
    double={"transformer_blocks": "num_layers"},
    single={"single_transformer_blocks": "num_single_layers"},
    timesteps=(0.0, 1000.0),
    text_first=False,
    text_mask="encoder_attention_mask",
    masks_padding=True,
    attention_kwargs="attention_kwargs",
    lora_targets=_LORA_TARGETS,
    lora_reader="HunyuanVideoLoraLoaderMixin",
)
HUNYUAN_VIDEO_FRAMEPACK = replace(
    HUNYUAN_VIDEO,
    name="hunyuan-video-framepack",
    transformer="HunyuanVideoFramepackTransformer3DModel",
    placement=_framepack,
)
HUNYUAN_VIDEO15 = Family(
    name="hunyuan-video15",
    transformer="HunyuanVideo15Transformer3DModel",
    stock_processors=("HunyuanVideo15AttnProcessor2_0",),
    double={"transformer_blocks": "num_layers"},
    timesteps=(0.0, 1000.0),
    placement=_hunyuan_video15,
    masks_padding=True,
    attention_kwargs="attention_kwargs",
    lora_targets=_LORA_TARGETS,
)
HUNYUAN_IMAGE = Family(
    name="hunyuan-image",
    transformer="HunyuanImageTransformer2DModel",
    stock_processors=("HunyuanImageAttnProcessor",),
    double={"transformer_blocks": "num_layers"},
    single={"single_transformer_blocks": "num_single_layers"},
    timesteps=(0.0, 1000.0),
    text=("encoder_hidden_states", "encoder_hidden_states_2"),
    text_first=False,
    masks_padding=True,
    attention_kwargs="attention_kwargs",
    lora_targets=_LORA_TARGETS,
)
