"""One tiny model of every transformer class in which image queries meet text keys, and arguments for one call of it.

    TINY["flux2"].build()               the real class of diffusers, random and small (milliseconds for a call)
    TINY["flux2"].inputs([1.0, 0.5])    a call's arguments for samples at these noise levels

Most draw 16 image tokens from 6 tokens of text; where a model takes a mask, two tokens of the first sample are padding.
"""

from typing import Any

import torch
from explicit_softmax import HEADS, WIDTH, Call, Source, Tiny, positions, text_first, text_last
from tiny_video_transformers import VIDEO

IMAGE, TEXT, SIDE = 16, 6, 4
ROTARY = (4, 6, 6)
FLUX = {
    "patch_size": 1,
    "in_channels": 8,
    "num_layers": 1,
    "num_single_layers": 2,
    **HEADS,
    "joint_attention_dim": WIDTH,
}


def _flux(
    scale: float = 1.0, axes: int = 3, prompt: str = "encoder_hidden_states", pooled: int = 0, **more: Any
) -> Any:
    """Packed latents and text with their positions, text first. scale: the timestep at pure noise."""

    def call(sigma: list[float], dtype: torch.dtype) -> Call:
        normal = Source(sigma, dtype)
        arguments = {
            "hidden_states": normal(IMAGE, 8),
            prompt: normal(TEXT, WIDTH),
            "timestep": normal.sigma * scale,
            "img_ids": positions(SIDE, axes),
            "txt_ids": torch.zeros(TEXT, axes),
        }
        if pooled:
            arguments["pooled_projections"] = normal(pooled)
        return Call(arguments | more, text_first(TEXT, IMAGE))

    return call


def _flux2_kv(mode: str) -> Any:
    """FLUX.2 klein with cached reference pictures: 4 of the image tokens are a reference, which sees only itself."""

    def call(sigma: list[float], dtype: torch.dtype) -> Call:
        from diffusers.models.transformers.transformer_flux2 import Flux2KVCache

        arguments = _flux(axes=4)(sigma, dtype).arguments
        normal, references = Source(sigma, dtype), 4

        def reverse(queries: int, keys: int) -> torch.Tensor:
            text, image = torch.arange(queries) < TEXT, torch.arange(keys) >= TEXT
            return (text[:, None] & image & torch.tensor(keys > references))[None]

        if mode == "extract":
            ids, tokens = positions(SIDE, 4), IMAGE - references

            def block(queries: int, keys: int) -> torch.Tensor:
                # [text, reference, image] x itself without the reference's queries, and the reference alone.
                return text_first(TEXT, tokens)(queries, keys) & (torch.tensor(keys > references))

            arguments |= {"img_ids": ids, "num_ref_tokens": references, "kv_cache_mode": mode}
            return Call(arguments, block, reverse)
        cache = Flux2KVCache(1, 2)
        cache.num_ref_tokens = references
        for layer in (*cache.double_block_caches, *cache.single_block_caches):
            layer.store(normal(references, 2, 16), normal(references, 2, 16))
        return Call(arguments | {"kv_cache": cache, "kv_cache_mode": mode}, text_first(TEXT, IMAGE), reverse)

    return call


def _flux2_kv_processors(model: Any) -> None:
    from diffusers.models.transformers.transformer_flux2 import Flux2KVAttnProcessor, Flux2KVParallelSelfAttnProcessor

    for block in model.transformer_blocks:
        block.attn.set_processor(Flux2KVAttnProcessor())
    for block in model.single_transformer_blocks:
        block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())


def _flux3(sigma: list[float], dtype: torch.dtype) -> Call:
    """With 4 tokens of a reference picture, which follow the image and count as such."""
    normal = Source(sigma, dtype)
    arguments = _flux(axes=4)(sigma, dtype).arguments
    reference = {"image_cond_hidden_states": normal(4, 8), "image_cond_ids": positions(2, 4)}
    return Call(arguments | reference, text_first(TEXT, IMAGE + 4))


def _chroma(sigma: list[float], dtype: torch.dtype) -> Call:
    mask = torch.cat([Source(sigma, dtype).mask(TEXT), torch.ones(len(sigma), IMAGE, dtype=torch.bool)], dim=1)
    return Call(_flux()(sigma, dtype).arguments | {"attention_mask": mask}, text_first(TEXT, IMAGE))


def _bria_fibo(sigma: list[float], dtype: torch.dtype) -> Call:
    normal = Source(sigma, dtype)
    valid = torch.cat([normal.mask(TEXT), torch.ones(normal.batch, IMAGE, dtype=torch.bool)], dim=1)
    mask = torch.zeros(normal.batch, 1, 1, TEXT + IMAGE, dtype=dtype).masked_fill(~valid[:, None, None], -1e4)
    arguments = _flux(1000)(sigma, dtype).arguments
    arguments |= {
        "text_encoder_layers": [normal(TEXT, 20) for _ in range(3)],
        "joint_attention_kwargs": {"attention_mask": mask},
    }
    return Call(arguments, text_first(TEXT, IMAGE))


def _sd3(sigma: list[float], dtype: torch.dtype) -> Call:
    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(4, 8, 8),
        "encoder_hidden_states": normal(TEXT, WIDTH),
        "pooled_projections": normal(20),
        "timestep": normal.sigma * 1000,
    }
    return Call(arguments, text_last(IMAGE, TEXT))


def _auraflow(sigma: list[float], dtype: torch.dtype) -> Call:
    """8 learned tokens in front of the text: their keys are neither, their queries the text's."""
    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(4, 8, 8),
        "encoder_hidden_states": normal(TEXT, WIDTH),
        "timestep": normal.sigma,
    }
    stream = text_first(8 + TEXT, IMAGE)
    return Call(
        arguments,
        lambda queries, keys: stream(queries, keys) & (torch.arange(keys) >= 8),
        reverse=lambda queries, keys: stream(keys, queries).transpose(-1, -2),
    )


def _qwen_image(sigma: list[float], dtype: torch.dtype) -> Call:
    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(IMAGE, 8),
        "encoder_hidden_states": normal(TEXT, WIDTH),
        "encoder_hidden_states_mask": normal.mask(TEXT),
        "timestep": normal.sigma,
        "img_shapes": [[(1, SIDE, SIDE)]] * normal.batch,
    }
    return Call(arguments, text_first(TEXT, IMAGE))


def _nucleusmoe(sigma: list[float], dtype: torch.dtype) -> Call:
    arguments = _qwen_image(sigma, dtype).arguments
    return Call(arguments | {"img_shapes": [(1, SIDE, SIDE)] * len(sigma)}, text_last(IMAGE, TEXT))


def _qwen_image21(sigma: list[float], dtype: torch.dtype) -> Call:
    """3 tokens of text, a reference picture of 4 tokens, 2 of text, the image; all but the image is attended to causally."""
    normal = Source(sigma, dtype)
    slots = torch.tensor([False] * 3 + [True] + [False] * 2 + [True] * (IMAGE // 4))  # one for 4 tokens of a picture
    arguments = {
        "hidden_states": normal(4 + IMAGE, 8),
        "encoder_hidden_states": normal(6, WIDTH),
        "encoder_hidden_states_mask": torch.tensor([[False] + [True] * 5, [True] * 6])[: normal.batch],
        "timestep": normal.sigma,
        "img_shapes": [[(1, 2, 2), (1, SIDE, SIDE)]] * normal.batch,
        "img_mask": slots.expand(normal.batch, -1),
    }
    text = torch.tensor([True] * 3 + [False] * 4 + [True] * 2 + [False] * IMAGE)

    def block(queries: int, keys: int) -> torch.Tensor:  # only the drawn image's rows; the others may come from a cache
        drawn = queries == IMAGE and keys == len(text)
        return (text[:keys] & torch.tensor(drawn)).expand(1, queries, keys)

    return Call(arguments, block)


def _z_image(sigma: list[float], dtype: torch.dtype) -> Call:
    """16 image tokens, padded to 32, then 5 and 35 of text, padded to 32 and 64; its time runs from noise to image."""
    normal = Source(sigma, dtype)
    lengths = [5, 35][: normal.batch]
    arguments = {
        "x": list(normal(4, 1, 8, 8)),
        "t": 1 - normal.sigma,
        "cap_feats": [normal(35, WIDTH)[i][:length] for i, length in enumerate(lengths)],
    }
    return Call(arguments, text_last(32, [32, 64][: normal.batch]))


def _hidream(height: int, width: int) -> Any:
    """3 tokens of T5, and 4 of a layer of Llama twice, after 16 image tokens."""

    def call(sigma: list[float], dtype: torch.dtype) -> Call:
        normal = Source(sigma, dtype)
        arguments = {
            "hidden_states": normal(4, height, width),
            "timesteps": normal.sigma * 1000,
            "encoder_hidden_states_t5": normal(3, WIDTH),
            "encoder_hidden_states_llama3": torch.stack([normal(4, 20) for _ in range(3)]),
            "pooled_embeds": normal(12),
        }
        return Call(arguments, text_last(IMAGE, 3 + 4 + 4))

    return call


def _lumina2(sigma: list[float], dtype: torch.dtype) -> Call:
    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(4, 8, 8),
        "timestep": 1 - normal.sigma,
        "encoder_hidden_states": normal(TEXT, WIDTH),
        "encoder_attention_mask": normal.mask(TEXT),
    }
    return Call(arguments, text_first([TEXT - 2, *[TEXT] * (normal.batch - 1)], IMAGE))


def _cogview(sigma: list[float], dtype: torch.dtype) -> Call:
    normal = Source(sigma, dtype)
    size = torch.full((normal.batch, 2), 64.0, dtype=dtype)
    arguments = {
        "hidden_states": normal(4, 8, 8),
        "encoder_hidden_states": normal(TEXT, WIDTH),
        "timestep": normal.sigma * 1000,
        "original_size": size,
        "target_size": size,
        "crop_coords": 0 * size,
    }
    return Call(arguments, text_first(TEXT, IMAGE))


def _glm_image(sigma: list[float], dtype: torch.dtype) -> Call:
    normal = Source(sigma, dtype)
    arguments = _cogview(sigma, dtype).arguments
    del arguments["original_size"]
    arguments |= {
        "timestep": normal.sigma * 1000 - 1,
        "prior_token_id": torch.arange(IMAGE).expand(normal.batch, -1),
        "prior_token_drop": torch.zeros(normal.batch, IMAGE, dtype=torch.bool),
    }
    return Call(arguments, text_first(TEXT, IMAGE))


def _krea2(sigma: list[float], dtype: torch.dtype) -> Call:
    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(IMAGE, 8),
        "encoder_hidden_states": normal(TEXT, 3, WIDTH),
        "timestep": normal.sigma,
        "position_ids": torch.cat([torch.zeros(TEXT, 3), positions(SIDE)]),
        "encoder_attention_mask": normal.mask(TEXT),
    }
    return Call(arguments, text_first(TEXT, IMAGE))


def _ideogram4(sigma: list[float], dtype: torch.dtype) -> Call:
    """Padding, text, image: told apart by an indicator."""
    normal = Source(sigma, dtype)
    indicator = torch.tensor([3] * TEXT + [2] * IMAGE).repeat(normal.batch, 1)
    indicator[0, :2] = -1
    arguments = {
        "hidden_states": normal(TEXT + IMAGE, 8),
        "timestep": 1 - normal.sigma,
        "encoder_hidden_states": normal(TEXT + IMAGE, WIDTH),
        "position_ids": torch.arange(TEXT + IMAGE, dtype=dtype)[None, :, None].expand(normal.batch, -1, 3),
        "segment_ids": (indicator > 0).long(),
        "indicator": indicator,
    }

    def block(queries: int, keys: int) -> torch.Tensor:
        return (indicator == 2)[:, :, None] & (indicator == 3)[:, None]

    return Call(arguments, block)


def _ernie(sigma: list[float], dtype: torch.dtype) -> Call:
    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(4, SIDE, SIDE),
        "timestep": normal.sigma * 1000,
        "text_bth": normal(TEXT, WIDTH),
        "text_lens": torch.tensor([TEXT - 2, *[TEXT] * (normal.batch - 1)]),
    }
    return Call(arguments, text_last(IMAGE, TEXT))


def _omnigen(sigma: list[float], dtype: torch.dtype) -> Call:
    """Padding, 9 tokens of the prompt, in the last sample with a picture of 4, a token of time, the image; text is causal."""
    normal, prompt = Source(sigma, dtype), 9
    valid = normal.mask(prompt).flip(1)
    picture = torch.zeros(normal.batch, prompt, dtype=torch.bool)
    picture[-1, 3:7] = True
    length = prompt + 1 + IMAGE
    mask = torch.ones(length, length).tril().repeat(normal.batch, 1, 1)
    mask[:, -IMAGE:] = 1
    mask[-1, 3:7, 3:7] = 1
    mask[:, :, :prompt] *= valid[:, None]
    mask[:, :prompt] = torch.where(valid[:, :, None], mask[:, :prompt], 1)
    arguments = {
        "hidden_states": normal(4, 8, 8),
        "timestep": 1 - normal.sigma,
        "input_ids": torch.arange(1, prompt + 1).repeat(normal.batch, 1),
        "input_img_latents": [normal(4, 4, 4)[:1]],
        "input_image_sizes": {normal.batch - 1: [[3, 7]]},
        "attention_mask": mask.to(dtype),
        "position_ids": torch.arange(length).repeat(normal.batch, 1),
    }

    def block(queries: int, keys: int) -> torch.Tensor:
        text = torch.cat([valid & ~picture, torch.zeros(normal.batch, 1 + IMAGE, dtype=torch.bool)], dim=1)
        return ~text[:, :, None] & text[:, None]

    return Call(arguments, block)


def _prx(sigma: list[float], dtype: torch.dtype) -> Call:
    normal = Source(sigma, dtype)
    arguments = {
        "hidden_states": normal(4, 8, 8),
        "timestep": normal.sigma,
        "encoder_hidden_states": normal(TEXT, WIDTH),
        "attention_mask": normal.mask(TEXT),
    }

    def block(queries: int, keys: int) -> torch.Tensor:  # text has no queries
        return (torch.arange(keys) < TEXT).expand(1, queries, keys)

    return Call(arguments, block)


_FLUX2 = {
    **FLUX,
    "axes_dims_rope": (4, 4, 4, 4),
    "timestep_guidance_channels": 16,
    "mlp_ratio": 2.0,
    "guidance_embeds": False,
}
_CHROMA = {"approximator_num_channels": 16, "approximator_hidden_dim": 32, "approximator_layers": 1}
_SQUARE = {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, **HEADS}
_COGVIEW = {**_SQUARE, "text_embed_dim": WIDTH, "time_embed_dim": 16, "condition_dim": 8}
_HIDREAM = {
    **_SQUARE, "num_layers": 1, "num_single_layers": 2, "caption_channels": [WIDTH, 20], "text_emb_dim": 12,
    "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": (8, 4, 4), "max_resolution": (8, 8),
    "llama_layers": [0, 1, 2],
}  # fmt: skip

TINY = VIDEO | {
    "flux": Tiny(
        "FluxTransformer2DModel", {**FLUX, "pooled_projection_dim": 20, "axes_dims_rope": ROTARY}, _flux(pooled=20), 3
    ),
    "chroma": Tiny("ChromaTransformer2DModel", {**FLUX, "axes_dims_rope": ROTARY, **_CHROMA}, _chroma, 3),
    "sd3": Tiny(
        "SD3Transformer2DModel",
        {**_SQUARE, "sample_size": 8, "joint_attention_dim": WIDTH, "caption_projection_dim": 32,
         "pooled_projection_dim": 20, "pos_embed_max_size": 8, "dual_attention_layers": (0,), "qk_norm": "rms_norm"},
        _sd3,
        2,
    ),
    "auraflow": Tiny(
        "AuraFlowTransformer2DModel",
        {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 2, **HEADS,
         "joint_attention_dim": WIDTH, "caption_projection_dim": 32, "pos_embed_max_size": 64},
        _auraflow,
        3,
        r"(joint|single)_transformer_blocks\.\d+\.attn",
    ),
    "qwen-image": Tiny(
        "QwenImageTransformer2DModel",
        {"in_channels": 8, "out_channels": 2, "num_layers": 2, **HEADS, "joint_attention_dim": WIDTH, "axes_dims_rope": ROTARY},
        _qwen_image,
        2,
    ),
    "flux2": Tiny("Flux2Transformer2DModel", _FLUX2, _flux(axes=4), 3),
    "flux2-kv-extract": Tiny("Flux2Transformer2DModel", _FLUX2, _flux2_kv("extract"), 3, prepare=_flux2_kv_processors),
    "flux2-kv-cached": Tiny("Flux2Transformer2DModel", _FLUX2, _flux2_kv("cached"), 3, prepare=_flux2_kv_processors),
    "flux3": Tiny(
        "Flux3Transformer2DModel",
        {"in_channels": 8, "cond_in_channels": 8, "num_layers": 1, "num_single_layers": 2, **HEADS, "mlp_ratio": 2.0,
         "joint_attention_dim": WIDTH, "timestep_channels": 16, "axes_dims_rope": (4, 4, 4, 4)},
        _flux3,
        2,
        r"single_transformer_blocks\.\d+\.attn",
    ),
    "longcat-image": Tiny("LongCatImageTransformer2DModel", {**FLUX, "axes_dims_rope": ROTARY}, _flux(), 3),
    "ovis-image": Tiny("OvisImageTransformer2DModel", {**FLUX, "axes_dims_rope": ROTARY}, _flux(), 3),
    "bria": Tiny("BriaTransformer2DModel", {**FLUX, "axes_dims_rope": ROTARY}, _flux(1000), 3),
    "bria-fibo": Tiny(
        "BriaFiboTransformer2DModel", {**FLUX, "axes_dims_rope": ROTARY, "text_encoder_dim": 20}, _bria_fibo, 3
    ),
    "z-image": Tiny(
        "ZImageTransformer2DModel",
        {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": WIDTH,
         "axes_dims": list(ROTARY), "axes_lens": [128, 32, 32]},
        _z_image,
        2,
        r"layers\.\d+\.attention",
    ),
    "hidream": Tiny(
        "HiDreamImageTransformer2DModel", _HIDREAM, _hidream(8, 8), 3, r"(double|single)_stream_blocks\.\d+\.block\.attn1"
    ),
    "hidream-wide": Tiny(  # padded to the largest resolution
        "HiDreamImageTransformer2DModel", _HIDREAM, _hidream(4, 8), 3, r"(double|single)_stream_blocks\.\d+\.block\.attn1"
    ),
    "lumina2": Tiny(
        "Lumina2Transformer2DModel",
        {"sample_size": 8, "in_channels": 4, "hidden_size": 32, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2,
         "num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": ROTARY, "axes_lens": (64, 16, 16), "cap_feat_dim": WIDTH},
        _lumina2,
        2,
        r"layers\.\d+\.attn",
    ),
    "cogview4": Tiny(
        "CogView4Transformer2DModel", {**_COGVIEW, "rope_axes_dim": (8, 8)}, _cogview, 2, r"transformer_blocks\.\d+\.attn1"
    ),
    "cogview3-plus": Tiny(
        "CogView3PlusTransformer2DModel", {**_COGVIEW, "pos_embed_max_size": 8}, _cogview, 2, r"transformer_blocks\.\d+\.attn1"
    ),
    "glm-image": Tiny(
        "GlmImageTransformer2DModel",
        {**_COGVIEW, "prior_vq_quantizer_codebook_size": 16},
        _glm_image,
        2,
        r"transformer_blocks\.\d+\.attn1",
    ),
    "krea2": Tiny(
        "Krea2Transformer2DModel",
        {"in_channels": 8, "num_layers": 2, **HEADS, "num_key_value_heads": 1, "intermediate_size": 32, "timestep_embed_dim": 16,
         "text_hidden_dim": WIDTH, "num_text_layers": 3, "text_num_attention_heads": 2, "text_num_key_value_heads": 2,
         "text_intermediate_size": WIDTH, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "axes_dims_rope": ROTARY},
        _krea2,
        2,
        r"transformer_blocks\.\d+\.attn",
    ),
    "ideogram4": Tiny(
        "Ideogram4Transformer2DModel",
        {"in_channels": 8, "num_layers": 2, **HEADS, "intermediate_size": 32, "adaln_dim": 16, "llm_features_dim": WIDTH,
         "mrope_section": (3, 2, 2)},
        _ideogram4,
        2,
        r"layers\.\d+\.attention",
    ),
    "ernie-image": Tiny(
        "ErnieImageTransformer2DModel",
        {"hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 32, "in_channels": 4, "out_channels": 4,
         "text_in_dim": WIDTH, "rope_axes_dim": ROTARY},
        _ernie,
        2,
        r"layers\.\d+\.self_attention",
    ),
    "omnigen": Tiny(
        "OmniGenTransformer2DModel",
        {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32, "num_layers": 2,
         "pad_token_id": 0, "vocab_size": 32, "rope_scaling": {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
         "pos_embed_max_size": 8, "time_step_dim": 16},
        _omnigen,
        2,
        r"layers\.\d+\.self_attn",
        text_queries=False,
    ),
    "qwen-image21": Tiny(
        "QwenImage21Transformer2DModel",
        {"in_channels": 8, "out_channels": 8, "num_layers": 2, **HEADS, "context_in_dim": WIDTH, "axes_dims_rope": ROTARY},
        _qwen_image21,
        2,
        text_queries=False,
    ),
    "prx": Tiny(
        "PRXTransformer2DModel",
        {"in_channels": 4, "context_in_dim": WIDTH, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2,
         "axes_dim": [8, 8]},
        _prx,
        2,
        r"blocks\.\d+\.attention",
        text_queries=False,
    ),
    "nucleusmoe-image": Tiny(
        "NucleusMoEImageTransformer2DModel",
        {"patch_size": 1, "in_channels": 8, "out_channels": 8, "num_layers": 2, **HEADS, "num_key_value_heads": 1,
         "joint_attention_dim": WIDTH, "axes_dims_rope": ROTARY, "mlp_ratio": 8.0, "dense_moe_strategy": "leave_first_block_dense",
         "num_experts": 2, "moe_intermediate_dim": 16, "capacity_factors": 1.0},
        _nucleusmoe,
        2,
        text_queries=False,
    ),
}  # fmt: skip
