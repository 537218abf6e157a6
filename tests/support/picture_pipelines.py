"""Small pipelines that edit pictures, as those of `small_pipelines`: FLUX.1 Kontext, Qwen-Image-Edit, JoyImage Edit Plus."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from small_pipelines import _read_back, _scheduler, _seeded, small_flux_pipeline, small_qwen_pipeline
from tiny_transformers import TINY, WIDTH

SIDE = 16
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def picture(side: int = SIDE) -> Image.Image:
    return Image.linear_gradient("L").resize((side, side)).convert("RGB")


def small_kontext_pipeline(folder: Path) -> Any:
    """A `FluxKontextPipeline` of the parts of `small_flux_pipeline`."""
    from diffusers import FluxKontextPipeline

    parts = small_flux_pipeline(folder / "flux").components
    return _read_back(FluxKontextPipeline(**parts), folder)


def small_qwen_edit_pipeline(folder: Path) -> Any:
    """A `QwenImageEditPipeline` of the parts of `small_qwen_pipeline`, whose language model also sees the picture."""
    from diffusers import QwenImageEditPipeline
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    parts = small_qwen_pipeline(folder / "qwen").components
    encoder, tokenizer = parts["text_encoder"], parts["tokenizer"]
    tokenizer.add_tokens(list(VISION), special_tokens=True)
    _seeded(0, lambda: encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False))
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(VISION))
    encoder.config.vision_start_token_id, encoder.config.vision_end_token_id = start, end
    encoder.config.image_token_id, encoder.config.video_token_id = image, video
    small = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(**small), tokenizer, Qwen2VLVideoProcessor(**small))
    pipe = _read_back(QwenImageEditPipeline(**parts, processor=processor), folder)
    before = pipe.prompt_template_encode.partition(VISION[0])[0]
    pipe.latent_channels = -1  # the small VAE has three, so that a picture would be taken for latents
    pipe.prompt_template_encode_start_idx = len(tokenizer(before).input_ids)  # 64 tokens of its own tokenizer
    return pipe


def small_joyimage_edit_plus_pipeline(folder: Path) -> Any:
    """A `JoyImageEditPlusPipeline` without its language model: prompts of 3 to 5 tokens, of random numbers."""
    from diffusers import AutoencoderKLWan, JoyImageEditPlusPipeline

    vae = AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False])
    parts = {"scheduler": _scheduler(), "vae": vae, "transformer": TINY["joyimage-edit-plus"].build()}
    pipe = JoyImageEditPlusPipeline(**parts, text_encoder=None, tokenizer=None, processor=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.encode_prompt_multiple_images = _random_text
    return pipe


def _random_text(prompt: list[str], **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(int("blue" in prompt[0]))
    length = 3 + min(2, len(prompt[0].split()))
    return torch.randn(1, length, WIDTH, generator=generator), torch.ones(1, length)


def small_references() -> AbstractContextManager[Any]:
    """Qwen-Image-Edit enlarges each picture to a megapixel; here it does not."""
    where = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit.calculate_dimensions"
    return mock.patch(where, return_value=(SIDE, SIDE, None))
