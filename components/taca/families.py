"""What describes a transformer family: its attention layers, timestep unit and processors, and the pipeline that runs it.

The families themselves are in `models/`, found by `registry.family_of`; docs/taca.md adds CogVideoX as an example.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from components.taca.config import Stream
from components.taca.processors import TemperatureProcessor
from components.taca.sampler import SamplerArguments, spaced_levels

Batch = Mapping[str, Tensor]

# The suffixes carry "attn." so that they match neither SD3's image-only attn2 nor any feed-forward layer.
JOINT_ATTENTION_LINEARS = tuple(
    f"attn.{linear}"
    for linear in ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_out.0", "to_q", "to_v")
)


def plain_guidance(pipe: Any, scale: float, embedded: float) -> dict[str, Any]:
    """Return the call arguments of a pipeline whose `guidance_scale` is that of classifier-free guidance."""
    return {"guidance_scale": scale}


def shifted_latents(vae: Any, pixels: Tensor) -> Tensor:
    """Encode pixels with an `AutoencoderKL`, shifted and scaled by its config."""
    mean = vae.encode(pixels.to(vae.dtype)).latent_dist.mean  # (B, C, H / f, W / f)
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor


def no_arguments(batch: Batch, dtype: torch.dtype) -> dict[str, Any]:
    """Return no further arguments of a forward."""
    return {}


@dataclass(frozen=True)
class Conventions:
    """A pipeline class of diffusers, and what caching, training and drawing need to know about it.

    Its functions are module-level ones: a transformer with TACA enabled is pickled with its family.

    - `text_parts`: its text encoders and tokenizers; it also has a transformer, a VAE and a scheduler.
    - `length_tokenizer`: the tokenizer whose own length bounds the text, at most `max_text_tokens(config of the transformer)`
      tokens, with which the model was trained. `prepended_text_tokens` are put in front of these.
    - `embed_captions(pipe, captions, length)`: the pipeline's own embedding of captions, by name: "prompt_embeds" (N, T, D);
      "pooled" (N, P) and "text_mask" (N, T) bool, True where the transformer attends, if it takes them.
    - `guidance_arguments(pipe, scale, embedded)`: the arguments of its call that set the scale of classifier-free guidance
      (1 is off) and the embedded scale of a guidance-distilled model.
    - `encode_pixels(vae, pixels)`: float32 pixels (B, 3, H, W) in [-1, 1] as scaled latents (B, C, H / f, W / f).
    - `forward_arguments(batch, dtype)`: the transformer's arguments for a training batch beside latents, timestep, guidance,
      prompt and pooled embeddings.
    - `packed`: whether latents are tokens of 2x2 patches (B, S, 4 C), not (B, C, H, W).
    - `encoder_fallback`: (encoder, part): where a folder lacks this encoder, its embedding is zeros as wide as this part says.
    - `sampler_arguments`: what its call passes to the scheduler beside the number of steps; one of the functions in `sampler.py`.
    - `rounds_timesteps`: whether its call rounds t to the latents' dtype before the transformer sees it.
    """

    pipeline: str
    text_parts: tuple[str, ...]
    length_tokenizer: str
    max_text_tokens: Callable[[Mapping[str, Any]], int]
    embed_captions: Callable[[Any, list[str], int], dict[str, Tensor]]
    prepended_text_tokens: int = 0
    guidance_arguments: Callable[[Any, float, float], dict[str, Any]] = plain_guidance
    encode_pixels: Callable[[Any, Tensor], Tensor] = shifted_latents
    forward_arguments: Callable[[Batch, torch.dtype], dict[str, Any]] = no_arguments
    packed: bool = True
    encoder_fallback: tuple[str, str] | None = None
    sampler_arguments: SamplerArguments = spaced_levels
    rounds_timesteps: bool = True

    @property
    def parts(self) -> tuple[str, ...]:
        """Every part that a folder of this class may hold."""
        return ("transformer", "vae", *self.text_parts, "scheduler")


@dataclass(frozen=True)
class Family:
    """A transformer class and what TACA needs to know about it.

    - `stock_processor`: class name of the attention processor that `processor` replaces.
    - `layers`: the keys of the transformer's config that, added up, are the number of joint attention modules.
    - `joint_attention`: the last name of those modules ("attn"; SD3's "attn2" is over the image alone). Those below
      `single_blocks` are single-stream, the others double-stream.
    - `timestep_scale`: the timestep, as forward takes it, at pure noise.
    - `attention_kwargs`: forward's argument that reaches the attention processors.
    - `prefix_tokens`: learned tokens that the transformer puts before the text (AuraFlow's registers). They carry no
      text, and their logits are left alone.
    - `text_mask`: forward's argument that masks padding out of the text, bool (B, at least T), if it has one.
    - `checkpointed_kwargs`: set where diffusers forgets `attention_kwargs` under gradient checkpointing: the blocks' name
      of that argument.
    - `lora_targets`: attention-only LoRA targets (PEFT suffixes).
    - `lora_reader`: the class in `diffusers.loaders.lora_pipeline` that reads LoRA files for the family's pipelines, if any.
    - `conventions`: its pipeline; None for a transformer that is patched, but neither trained nor drawn with here.
    """

    name: str
    transformer: str
    stock_processor: str
    processor: type[TemperatureProcessor]
    layers: tuple[str, ...]
    timestep_scale: float
    joint_attention: str = "attn"
    single_blocks: str = "single_transformer_blocks"
    attention_kwargs: str = "joint_attention_kwargs"
    prefix_tokens: int = 0
    text_mask: str | None = None
    checkpointed_kwargs: str | None = None
    lora_targets: tuple[str, ...] = JOINT_ATTENTION_LINEARS
    lora_reader: str | None = None
    conventions: Conventions | None = None

    def sigma(self, timestep: Tensor) -> Tensor:
        """Return the noise level in [0, 1] of a timestep as this transformer's forward takes it; float32, at least 1-d."""
        return timestep.float().reshape(-1) / self.timestep_scale

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the timestep that this transformer's forward takes for a noise level."""
        return sigma * self.timestep_scale

    def joint_layers(self, config: Any) -> int:
        """Return the number of joint attention modules of a transformer with this config."""
        return sum(getattr(config, key) for key in self.layers)

    def stream(self, module_name: str) -> Stream:
        """Whether a joint attention module sits in a double- or a single-stream block."""
        return "single" if module_name.split(".", 1)[0] == self.single_blocks else "double"


def forward_parameters(transformer: nn.Module) -> tuple[str, ...]:
    """The names of a transformer's forward arguments, in order; also where offloading or hooks wrap its forward."""
    return tuple(inspect.signature(transformer.forward).parameters)


def named_arguments(parameters: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A forward call's arguments by name."""
    return {**dict(zip(parameters, args, strict=False)), **kwargs}
