"""Whole text-to-image pipelines of the real classes, random and small, written by `save_pretrained` and read back.

    small_flux_pipeline(folder)   CLIP + T5, latents packed 2x2
    small_sd3_pipeline(folder)    CLIP + CLIP + T5 (without T5: t5=False), latents (C, H, W)
    small_chroma_pipeline(folder), small_qwen_pipeline(folder), small_auraflow_pipeline(folder)

All know the words red, blue, hat, coat; have VAEs of scale 2 with 3 channels; draw pictures whose sides are multiples of
4, up to 32 for SD3; and hold the transformers of `small_transformers`, whose answers depend on the text.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_transformers import auraflow, chroma, flux, qwen, sd3

WORDS = ("red", "blue", "hat", "coat")
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
CLIP_TOKENS, T5_TOKENS = 8, 6
CHAT = ("<|im_start|>", "<|im_end|>")
TEXT_WIDTH = 24  # of T5, and of the transformers' text


def small_flux_pipeline(folder: Path, seed: int = 0, **transformer: Any) -> Any:
    """A `FluxPipeline` read from `folder`, where it was written. Keywords go to the transformer's config; the VAE has a quarter
    of its `in_channels`."""
    from diffusers import FluxPipeline
    from transformers import CLIPTextModel

    pipe = _seeded(
        seed,
        lambda: FluxPipeline(
            scheduler=_scheduler(),
            vae=small_vae(transformer.get("in_channels", 12) // 4),
            text_encoder=CLIPTextModel(_clip(20, 20)),
            tokenizer=_tokenizer(CLIP_TOKENS, framed=True),
            text_encoder_2=_t5(),
            tokenizer_2=_tokenizer(T5_TOKENS, framed=False),
            transformer=flux(seed, **transformer),
        ),
    )
    return _read_back(pipe, folder)


def small_sd3_pipeline(folder: Path, seed: int = 0, *, t5: bool = True) -> Any:
    """A `StableDiffusion3Pipeline` read from `folder`, where it was written; 8 CLIP + 6 T5 tokens (256 zeros without T5)."""
    from diffusers import StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    pipe = _seeded(
        seed,
        lambda: StableDiffusion3Pipeline(
            scheduler=_scheduler(),
            vae=small_vae(),
            text_encoder=CLIPTextModelWithProjection(_clip(8, 12)),
            tokenizer=_tokenizer(CLIP_TOKENS, framed=True),
            text_encoder_2=CLIPTextModelWithProjection(_clip(12, 8)),
            tokenizer_2=_tokenizer(CLIP_TOKENS, framed=True),
            text_encoder_3=_t5() if t5 else None,
            tokenizer_3=_tokenizer(T5_TOKENS, framed=False) if t5 else None,
            transformer=sd3(seed),
        ),
    )
    return _read_back(pipe, folder)


def small_chroma_pipeline(folder: Path, seed: int = 0) -> Any:
    """A `ChromaPipeline` read from `folder`: T5 alone, its padding masked."""
    from diffusers import ChromaPipeline

    pipe = _seeded(
        seed,
        lambda: ChromaPipeline(
            scheduler=_scheduler(),
            vae=small_vae(),
            text_encoder=_t5(),
            tokenizer=_tokenizer(T5_TOKENS, framed=False),
            transformer=chroma(seed),
        ),
    )
    return _read_back(pipe, folder)


def small_qwen_pipeline(folder: Path, seed: int = 0) -> Any:
    """A `QwenImagePipeline` read from `folder`: a language model that reads the prompt inside the pipeline's template."""
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    language = {
        "vocab_size": len(SPECIAL) + len(WORDS) + len(CHAT),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]},
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": TEXT_WIDTH}
    pipe = _seeded(
        seed,
        lambda: QwenImagePipeline(
            scheduler=_scheduler(),
            vae=AutoencoderKLQwenImage(
                base_dim=8,
                z_dim=3,
                dim_mult=[1, 1],
                num_res_blocks=1,
                temperal_downsample=[False],
                latents_mean=[0.1, -0.2, 0.3],
                latents_std=[1.5, 2.0, 0.5],
            ),
            text_encoder=Qwen2_5_VLForConditionalGeneration(
                Qwen2_5_VLConfig(text_config=language, vision_config=vision)
            ),
            tokenizer=_chat_tokenizer(),
            transformer=qwen(seed),
        ),
    )
    return _read_back(pipe, folder)


def small_auraflow_pipeline(folder: Path, seed: int = 0) -> Any:
    """An `AuraFlowPipeline` read from `folder`: one UMT5, its padding zero."""
    from diffusers import AuraFlowPipeline
    from transformers import UMT5Config, UMT5EncoderModel

    pipe = _seeded(
        seed,
        lambda: AuraFlowPipeline(
            tokenizer=_tokenizer(T5_TOKENS, framed=False),
            text_encoder=UMT5EncoderModel(UMT5Config(**_t5_shape())),
            vae=small_vae(),
            transformer=auraflow(seed),
            scheduler=_scheduler(),
        ),
    )
    return _read_back(pipe, folder)


def _seeded(seed: int, build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _read_back(pipe: Any, folder: Path) -> Any:
    pipe.save_pretrained(folder)
    absent = {name: None for name in ("text_encoder_3", "tokenizer_3") if getattr(pipe, name, pipe) is None}
    read = type(pipe).from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, **absent
    )
    read.set_progress_bar_config(disable=True)
    return read


def _scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def small_vae(channels: int = 3, blocks: int = 2) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8,) * blocks,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.125,
        scaling_factor=1.5,
    )


def _tokenizer(max_length: int, *, framed: bool) -> Any:
    """A word-level tokenizer; `framed` puts begin and end round the text, as CLIP's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if framed:
        words.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=max_length,
    )


def _chat_tokenizer() -> Any:
    """Cuts the template of `QwenImagePipeline` into as many tokens as Qwen's own: 34 before the prompt, 5 after it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate((*SPECIAL, *WORDS, *CHAT))}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[\n,:]"), "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=list(CHAT)
    )


def _clip(width: int, projection: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )


def _t5_shape() -> dict[str, Any]:
    return {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "d_model": TEXT_WIDTH,
        "d_kv": TEXT_WIDTH // 2,
        "d_ff": 2 * TEXT_WIDTH,
        "num_layers": 1,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "is_encoder_decoder": False,
        "use_cache": False,
        "pad_token_id": 0,
    }


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**_t5_shape()))
