"""Tiny models of the video transformers in which image queries meet text keys; `tiny_transformers` holds all of them."""

from typing import Any

import torch
from explicit_softmax import HEADS, WIDTH, Call, Source, Tiny, text_first, text_last

IMAGE, TEXT = 16, 6
ROTARY = (4, 6, 6)
ATTN1 = r"transformer_blocks\.\d+\.attn1"


def _cogvideox(sigma: list[float], dtype: torch.dtype) -> Call:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(2, 4, 8, 8),
        "encoder_hidden_states": normal(TEXT, WIDTH),
        "timestep": normal.sigma * 1000,
        "image_rotary_emb": get_3d_rotary_pos_embed(16, ((0, 0), (4, 4)), (4, 4), 2, device="cpu"),
    }
    return Call(arguments, text_first(TEXT, 2 * IMAGE))


def _easyanimate(sigma: list[float], dtype: torch.dtype) -> Call:
    """6 tokens of one text encoder and 3 of another."""
    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(4, 1, 8, 8),
        "timestep": normal.sigma * 1000,
        "encoder_hidden_states": normal(TEXT, WIDTH),
        "encoder_hidden_states_t5": normal(3, 20),
    }
    return Call(arguments, text_first(TEXT + 3, IMAGE))


def _hunyuan_video(sigma: list[float], dtype: torch.dtype) -> Call:
    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(4, 1, 4, 4),
        "timestep": normal.sigma * 1000,
        "encoder_hidden_states": normal(TEXT, WIDTH),
        "encoder_attention_mask": normal.mask(TEXT, dtype=torch.long),
        "pooled_projections": normal(8),
    }
    return Call(arguments, text_last(IMAGE, TEXT))


def _framepack(sigma: list[float], dtype: torch.dtype) -> Call:
    """Frames before these: 1, 4 and 16 tokens; 2 embeddings of a picture before the text. The text of one sample is cut."""
    normal = Source(sigma, dtype)
    arguments = {
        **_hunyuan_video(sigma, dtype).arguments,
        "hidden_states": normal(4, 1, 8, 8),
        "image_embeds": normal(2, 8),
        "indices_latents": torch.tensor([7]),
        "latents_clean": normal(4, 1, 8, 8),
        "indices_latents_clean": torch.tensor([0]),
        "latents_history_2x": normal(4, 2, 8, 8),
        "indices_latents_history_2x": torch.tensor([1, 2]),
        "latents_history_4x": normal(4, 4, 8, 8),
        "indices_latents_history_4x": torch.tensor([3, 4, 5, 6]),
    }
    text = TEXT if normal.batch > 1 else TEXT - 2
    return Call(arguments, text_last(1 + 4 + IMAGE + IMAGE, text, pictures=2))


def _hunyuan_video15(sigma: list[float], dtype: torch.dtype) -> Call:
    """2 embeddings of a picture, 3 - 1 tokens of ByT5, 6 - 2 of the text; padding of all of them at the end."""
    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(4, 1, 4, 4),
        "timestep": normal.sigma * 1000,
        "encoder_hidden_states": normal(TEXT, WIDTH),
        "encoder_attention_mask": normal.mask(TEXT),
        "encoder_hidden_states_2": normal(3, 12),
        "encoder_attention_mask_2": normal.mask(3, 1),
        "image_embeds": normal(2, 8),
    }
    return Call(arguments, text_last(IMAGE, TEXT + 3, pictures=2))


def _hunyuan_video15_without_picture(sigma: list[float], dtype: torch.dtype) -> Call:
    """Embeddings of zeros are padding, and the text comes first."""
    arguments = _hunyuan_video15(sigma, dtype).arguments
    arguments["image_embeds"] = 0 * arguments["image_embeds"]
    return Call(arguments, text_last(IMAGE, TEXT + 3 + 2))


def _hunyuan_image(sigma: list[float], dtype: torch.dtype) -> Call:
    arguments = _hunyuan_video15(sigma, dtype).arguments
    del arguments["image_embeds"]
    arguments["hidden_states"] = arguments["hidden_states"][:, :, 0]
    return Call(arguments, text_last(IMAGE, TEXT + 3))


def _mochi(sigma: list[float], dtype: torch.dtype) -> Call:
    """Each sample is attended to by itself, without its padding; time runs from noise to image."""
    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(4, 1, 8, 8),
        "encoder_hidden_states": normal(TEXT, WIDTH),
        "timestep": 1000 * (1 - normal.sigma),
        "encoder_attention_mask": normal.mask(TEXT),
    }
    return Call(arguments, lambda queries, keys: text_last(IMAGE, keys - IMAGE)(queries, keys))


def _motif(sigma: list[float], dtype: torch.dtype) -> Call:
    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(4, 1, 4, 4),
        "timestep": normal.sigma * 1000,
        "encoder_hidden_states": normal(TEXT, WIDTH),
        "encoder_attention_mask": normal.mask(TEXT),
        "image_embeds": normal(2, 8),
    }
    return Call(arguments, text_last(IMAGE, TEXT, pictures=2))


def _timestep_in_the_weights_dtype(model: Any) -> None:
    """Motif embeds its timestep in float32, also where its weights are float64."""
    embedder = model.time_text_embed.timestep_embedder
    embedder.register_forward_pre_hook(lambda module, args: (args[0].to(module.linear_1.weight.dtype),))


def _joyimage(sigma: list[float], dtype: torch.dtype) -> Call:
    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(4, 1, 8, 8),
        "timestep": normal.sigma * 1000,
        "encoder_hidden_states": normal(TEXT, WIDTH),
    }
    return Call(arguments, text_last(IMAGE, TEXT))


def _joyimage_plus(sigma: list[float], dtype: torch.dtype) -> Call:
    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(IMAGE, 4, 1, 2, 2),
        "timestep": normal.sigma * 1000,
        "encoder_hidden_states": normal(TEXT, WIDTH),
        "encoder_hidden_states_mask": normal.mask(TEXT, dtype=torch.float32),
        "shape_list": [[(1, 4, 4)]] * normal.batch,
    }
    return Call(arguments, text_last(IMAGE, TEXT))


_COGVIDEOX = {
    **HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 16, "text_embed_dim": WIDTH, "num_layers": 2,
    "sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": TEXT,
    "use_rotary_positional_embeddings": True,
}  # fmt: skip
_HUNYUAN = {
    **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 2, "num_refiner_layers": 1,
    "text_embed_dim": WIDTH, "rope_axes_dim": ROTARY,
}  # fmt: skip
_HUNYUAN_VIDEO = {**_HUNYUAN, "guidance_embeds": False, "pooled_projection_dim": 8}
_HUNYUAN15 = {name: value for name, value in _HUNYUAN.items() if name != "num_single_layers"} | {
    "num_layers": 2, "text_embed_2_dim": 12, "image_embed_dim": 8,
}  # fmt: skip
_MOTIF = {name: value for name, value in _HUNYUAN.items() if name != "num_refiner_layers"} | {
    "patch_size": 1, "image_embed_dim": 8, "num_decoder_layers": 1, "enable_text_cross_attention_dual": True,
}  # fmt: skip
_JOYIMAGE = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": WIDTH,
    "num_layers": 2,
    "rope_dim_list": list(ROTARY),
}

VIDEO = {
    "cogvideox": Tiny("CogVideoXTransformer3DModel", _COGVIDEOX, _cogvideox, 2, ATTN1),
    "consisid": Tiny("ConsisIDTransformer3DModel", _COGVIDEOX, _cogvideox, 2, ATTN1),
    "easyanimate": Tiny(
        "EasyAnimateTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "patch_size": 2, "num_layers": 2, "mmdit_layers": 1, "time_embed_dim": 16,
         "text_embed_dim": WIDTH, "text_embed_dim_t5": 20},
        _easyanimate,
        2,
        ATTN1,
    ),
    "hunyuan-video": Tiny("HunyuanVideoTransformer3DModel", {**_HUNYUAN_VIDEO, "patch_size": 1}, _hunyuan_video, 3),
    "hunyuan-video-framepack": Tiny(
        "HunyuanVideoFramepackTransformer3DModel",
        {**_HUNYUAN_VIDEO, "has_image_proj": True, "image_proj_dim": 8, "has_clean_x_embedder": True},
        _framepack,
        3,
    ),
    "hunyuan-video-framepack-one": Tiny(  # the padding of one sample is cut off
        "HunyuanVideoFramepackTransformer3DModel",
        {**_HUNYUAN_VIDEO, "has_image_proj": True, "image_proj_dim": 8, "has_clean_x_embedder": True},
        _framepack,
        3,
        levels=(1.0,),
    ),
    "hunyuan-video15": Tiny("HunyuanVideo15Transformer3DModel", _HUNYUAN15, _hunyuan_video15, 2),
    "hunyuan-video15-text": Tiny("HunyuanVideo15Transformer3DModel", _HUNYUAN15, _hunyuan_video15_without_picture, 2),
    "hunyuan-image": Tiny(
        "HunyuanImageTransformer2DModel", {**_HUNYUAN, "text_embed_2_dim": 12, "rope_axes_dim": (8, 8)}, _hunyuan_image, 3
    ),
    "mochi": Tiny(
        "MochiTransformer3DModel",
        {**HEADS, "num_layers": 2, "pooled_projection_dim": WIDTH, "in_channels": 4, "text_embed_dim": WIDTH, "time_embed_dim": 16,
         "max_sequence_length": TEXT},
        _mochi,
        2,
        ATTN1,
        one_sample=True,
    ),
    # The last single-stream block decodes: it joins two streams of the video, and no text.
    "motif-video": Tiny(
        "MotifVideoTransformer3DModel",
        _MOTIF,
        _motif,
        2,
        r"(single_)?transformer_blocks\.0\.attn",
        prepare=_timestep_in_the_weights_dtype,
    ),
    "joyimage-edit": Tiny("JoyImageEditTransformer3DModel", _JOYIMAGE, _joyimage, 2, r"double_blocks\.\d+\.attn"),
    "joyimage-edit-plus": Tiny("JoyImageEditPlusTransformer3DModel", _JOYIMAGE, _joyimage_plus, 2, r"double_blocks\.\d+\.attn"),
}  # fmt: skip
