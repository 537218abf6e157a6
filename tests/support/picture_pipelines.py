"""Small pipelines that draw from a picture, as those of `small_pipelines`: FLUX.1 Kontext and Qwen-Image-Edit."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image
from small_pipelines import _read_back, _seeded, small_flux_pipeline, small_qwen_pipeline

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


def small_references() -> AbstractContextManager[Any]:
    """Qwen-Image-Edit enlarges each picture to a megapixel; here it does not."""
    where = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit.calculate_dimensions"
    return mock.patch(where, return_value=(SIDE, SIDE, None))
