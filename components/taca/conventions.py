"""What differs between the text-to-image pipelines of diffusers: their parts, how they read captions, pictures, guidance.

One `Conventions` per pipeline class, found by `conventions_of(pipe)`; another pipeline is one entry. What differs between
their transformers is in `families.py`. All of them see latents in patches of 2x2: FLUX and its kin are given them packed
into tokens (B, S, 4 C), SD3 and AuraFlow get (B, C, H, W) and cut patches themselves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.errors import DataError, ParameterError
from components.taca.sampler import resolution_mu

PATCH = 2


@dataclass(frozen=True)
class Conventions:
    """A pipeline class and what caching, training and drawing need to know about it.

    - `text`: its text encoders and tokenizers; it also has a transformer, a VAE and a scheduler.
    - `counted_by`: the tokenizer whose own length bounds the text, at most `most_text` tokens, which is the pipeline's
      default; SD3 puts CLIP's tokens in front of these.
    - `captions(pipe, captions, length)`: the pipeline's own embedding of captions, by name: "prompt_embeds" (N, T, D);
      "pooled" (N, P) and "text_mask" (N, T) bool, True where the transformer is to look, if it takes them.
    - `guidance(pipe, scale, embedded)`: the arguments of its call that set the scale of true guidance (1 is off) and, for
      a guidance-distilled model, the scale that it is told.
    - `latents(vae, pixels)`: float32 pixels (B, 3, H, W) in [-1, 1] as scaled latents (B, C, H / f, W / f).
    - `packed`: whether latents are tokens of 2x2 patches.
    - `stands_in`: (encoder, part): where a folder lacks this encoder, zeros stand in that are as wide as this part says.
    - `spaces_levels`: whether its call hands the scheduler evenly spaced noise levels to shift; else the scheduler makes
      its own.
    - `rounds_timesteps`: whether its call rounds t to the latents' dtype before the transformer sees it.
    """

    pipeline: str
    text: tuple[str, ...]
    counted_by: str
    most_text: int
    captions: Callable[[Any, list[str], int], dict[str, Tensor]]
    guidance: Callable[[Any, float, float], dict[str, Any]]
    latents: Callable[[Any, Tensor], Tensor]
    packed: bool
    spaces_levels: bool
    stands_in: tuple[str, str] | None = None
    rounds_timesteps: bool = True

    @property
    def parts(self) -> tuple[str, ...]:
        """Every part that a folder of this class may hold."""
        return ("transformer", "vae", *self.text, "scheduler")


def conventions_of(pipe: Any) -> Conventions:
    """Those of a pipeline, by its class or a base class. `ParameterError` for any other."""
    for cls in type(pipe).__mro__:
        if cls.__name__ in CONVENTIONS:
            return CONVENTIONS[cls.__name__]
    raise ParameterError(f"{type(pipe).__name__}: not supported; supported are {', '.join(CONVENTIONS)}")


def text_length(pipe: Any) -> int:
    """Text tokens to run a pipeline with, as its calls take it (`max_sequence_length`)."""
    conventions = conventions_of(pipe)
    tokenizer = getattr(pipe, conventions.counted_by, None)
    return min(conventions.most_text, tokenizer.model_max_length if tokenizer is not None else conventions.most_text)


def picture_multiple(pipe: Any) -> int:
    """What both sides of a picture must be multiples of: a patch in pixels."""
    return PATCH * int(pipe.vae_scale_factor)


def _require_whole_patches(pipe: Any, height: int, width: int, error: type[Exception]) -> None:
    multiple = picture_multiple(pipe)
    if height % multiple or width % multiple:
        raise error(f"pictures of {height}x{width}: both sides must be multiples of {multiple} for this model")


@torch.no_grad()
def encode_captions(pipe: Any, captions: Sequence[str]) -> dict[str, Tensor]:
    """Captions as the transformer reads them: `{"prompt_embeds": (N, T, D)}`, for most "pooled" (N, P), for some
    "text_mask" (N, T) bool. T is the same for all captions."""
    return conventions_of(pipe).captions(pipe, list(captions), text_length(pipe))


@torch.no_grad()
def encode_pictures(pipe: Any, pixels: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), uint8 or float in [0, 1], as scaled latents of the VAE's dtype.

    Packed (B, S, 4 C) or (B, C, H / f, W / f), as the pipeline's transformer takes them, for a VAE of scale f; S = (H /
    2f) (W / 2f). The posterior mean is taken, so the result is a function of the picture. Raises `DataError` for a size
    that does not divide.
    """
    height, width = pixels.shape[-2:]
    _require_whole_patches(pipe, height, width, DataError)
    return as_transformer_input(pipe, conventions_of(pipe).latents(pipe.vae, signed_pixels(pixels.to(pipe.vae.device))))


def signed_pixels(pixels: Tensor) -> Tensor:
    """uint8 in 0..255, or float in 0..1, as float32 in [-1, 1]: what an `AutoencoderKL` reads."""
    return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels.float() * 2 - 1


def as_transformer_input(pipe: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, H, W) as the pipeline's transformer takes them: packed (B, S, 4 C), or as they are."""
    batch, channels, rows, columns = latents.shape
    packed = conventions_of(pipe).packed
    return pipe._pack_latents(latents, batch, channels, rows, columns) if packed else latents


def latent_shape(pipe: Any, height: int, width: int) -> tuple[int, int, int]:
    """(C, H, W) of a picture's latents, not packed. Raises `ParameterError` for a size that does not divide."""
    _require_whole_patches(pipe, height, width, ParameterError)
    channels = pipe.transformer.config.in_channels
    if conventions_of(pipe).packed:
        channels //= PATCH * PATCH
    return channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor


def image_tokens(pipe: Any, height: int, width: int) -> int:
    """How many tokens the transformer sees of a picture of this size."""
    multiple = picture_multiple(pipe)
    return (height // multiple) * (width // multiple)


def sampler_sigmas(pipe: Any, steps: int, height: int, width: int) -> Tensor:
    """The noise level of each step as the pipeline's call sets them for a picture of this size: (steps,) float32, falling.

    The pipeline's own scheduler is left as it is.
    """
    import numpy as np

    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    mu = resolution_mu(scheduler, image_tokens(pipe, height, width))
    shift = {} if mu is None else {"mu": mu}  # not every scheduler takes the argument
    if conventions_of(pipe).spaces_levels and not scheduler.config.get("use_flow_sigmas"):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), **shift)
    else:
        scheduler.set_timesteps(steps, **shift)
    return scheduler.sigmas[:-1]  # the last is 0, where nothing is left to do


# ---- captions ----


def _flux_captions(pipe: Any, captions: list[str], length: int) -> dict[str, Tensor]:
    embeds, pooled, _ = pipe.encode_prompt(captions, max_sequence_length=length)
    return {"prompt_embeds": embeds, "pooled": pooled}


def _sd3_captions(pipe: Any, captions: list[str], length: int) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipe.encode_prompt(
        captions, None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    return {"prompt_embeds": embeds, "pooled": pooled}


def _chroma_captions(pipe: Any, captions: list[str], length: int) -> dict[str, Tensor]:
    embeds, _, mask, *_ = pipe.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=length)
    return {"prompt_embeds": embeds, "text_mask": mask.bool()}


def _qwen_captions(pipe: Any, captions: list[str], length: int) -> dict[str, Tensor]:
    """Padded to `length` here: the pipeline itself pads to the longest of the captions that it happens to see."""
    embeds, mask = pipe.encode_prompt(captions, max_sequence_length=length)
    mask = torch.ones(embeds.shape[:2], device=embeds.device) if mask is None else mask
    missing = length - embeds.shape[1]
    return {"prompt_embeds": F.pad(embeds, (0, 0, 0, missing)), "text_mask": F.pad(mask.bool(), (0, missing))}


def _auraflow_captions(pipe: Any, captions: list[str], length: int) -> dict[str, Tensor]:
    embeds, *_ = pipe.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=length)
    return {"prompt_embeds": embeds}  # zeros where there is padding; AuraFlow's transformer takes no mask


# ---- guidance ----


def _flux_guidance(pipe: Any, scale: float, embedded: float) -> dict[str, Any]:
    return {
        "true_cfg_scale": scale,
        "guidance_scale": embedded,
    }  # `embedded` is ignored by models that are not distilled


def _qwen_guidance(pipe: Any, scale: float, embedded: float) -> dict[str, Any]:
    distilled = pipe.transformer.config.guidance_embeds
    return {"true_cfg_scale": scale, "guidance_scale": embedded if distilled else None}


def _plain_guidance(pipe: Any, scale: float, embedded: float) -> dict[str, Any]:
    return {"guidance_scale": scale}


# ---- pictures ----


def _shifted_latents(vae: Any, pixels: Tensor) -> Tensor:
    mean = vae.encode(pixels.to(vae.dtype)).latent_dist.mean  # (B, C, H / f, W / f)
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor


def _scaled_latents(vae: Any, pixels: Tensor) -> Tensor:
    return (
        vae.encode(pixels.to(vae.dtype)).latent_dist.mean * vae.config.scaling_factor
    )  # whatever its shift: as decoded


def _qwen_latents(vae: Any, pixels: Tensor) -> Tensor:
    """A VAE of videos, here of one frame, with a mean and a deviation for each channel."""
    frames = vae.encode(pixels.to(vae.dtype)[:, :, None]).latent_dist.mean  # (B, C, 1, H / f, W / f)
    mean, deviation = (
        torch.tensor(values, device=frames.device, dtype=frames.dtype).view(1, -1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (frames[:, :, 0] - mean) / deviation


FLUX = Conventions(
    pipeline="FluxPipeline",
    text=("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    counted_by="tokenizer_2",
    most_text=512,
    captions=_flux_captions,
    guidance=_flux_guidance,
    latents=_shifted_latents,
    packed=True,
    spaces_levels=True,
)

SD3 = Conventions(
    pipeline="StableDiffusion3Pipeline",
    text=("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"),
    counted_by="tokenizer_3",
    most_text=256,
    captions=_sd3_captions,
    guidance=_plain_guidance,
    latents=_shifted_latents,
    packed=False,
    spaces_levels=False,
    stands_in=("text_encoder_3", "transformer"),
    rounds_timesteps=False,
)

CHROMA = Conventions(
    pipeline="ChromaPipeline",
    text=("text_encoder", "tokenizer"),
    counted_by="tokenizer",
    most_text=512,
    captions=_chroma_captions,
    guidance=_plain_guidance,
    latents=_shifted_latents,
    packed=True,
    spaces_levels=True,
)

QWEN_IMAGE = Conventions(
    pipeline="QwenImagePipeline",
    text=("text_encoder", "tokenizer"),
    counted_by="tokenizer",
    most_text=512,
    captions=_qwen_captions,
    guidance=_qwen_guidance,
    latents=_qwen_latents,
    packed=True,
    spaces_levels=True,
)

AURAFLOW = Conventions(
    pipeline="AuraFlowPipeline",
    text=("text_encoder", "tokenizer"),
    counted_by="tokenizer",
    most_text=256,
    captions=_auraflow_captions,
    guidance=_plain_guidance,
    latents=_scaled_latents,
    packed=False,
    spaces_levels=False,
)

CONVENTIONS: dict[str, Conventions] = {kind.pipeline: kind for kind in (FLUX, SD3, CHROMA, QWEN_IMAGE, AURAFLOW)}
