"""What describes a transformer family: where its joint attention and its text are, its timestep, and the pipeline that runs it.

The families themselves are in `models/`, found by `registry.family_of`.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from components.taca.config import Stream
from components.taca.guidance import NEGATIVE
from components.taca.placement import Placement
from components.taca.sampler import SamplerArguments, spaced_levels

Batch = Mapping[str, Tensor]
Arguments = Mapping[str, Any]
"""The arguments of a transformer's forward, by name."""
Count = str | Callable[[Any], int]

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
    - `velocity(transformer, noisy, timestep, batch)`: the predicted velocity, for a transformer that is not called with
      `hidden_states` and `encoder_hidden_states`.
    - `packed`: whether the transformer's latents are tokens of 2x2 patches (B, S, 4 C), not (B, C, H, W).
    - `call_packs`: whether the pipeline's call takes patches (B, 4 C, H / 2, W / 2), and makes the tokens of them.
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
    velocity: Callable[[Any, Tensor, Tensor, Batch], Tensor] | None = None
    packed: bool = True
    call_packs: bool = False
    encoder_fallback: tuple[str, str] | None = None
    sampler_arguments: SamplerArguments = spaced_levels
    rounds_timesteps: bool = True

    @property
    def parts(self) -> tuple[str, ...]:
        """Every part that a folder of this class may hold."""
        return ("transformer", "vae", *self.text_parts, "scheduler")


@dataclass(frozen=True)
class Family:
    """A transformer class and what TACA needs to know about it. Its functions are module-level ones, as those of `Conventions`.

    - `stock_processors`: class names of the attention processors of its joint attention layers.
    - `double`, `single`: where its joint attention is: the name of a list of blocks -> how many of them are joint, a key of the
      transformer's config (or a function of it, where only the first ones are). In `double` ones, text and image have keys by
      weights of their own; in `single` ones, by the same weights. `double_until`: a key of the config, the number of the block
      from which on those of `double` are single after all (EasyAnimate).
    - `attention`: the joint attention module in such a block ("attn"; SD3's "attn2" is over the image alone).
    - `timestep_argument`: forward's argument for the timestep; `timesteps` are its values at no noise and at pure noise.
    - `text`: forward's arguments that carry text tokens (B, T, ...), in the order of the sequence. Text is at its beginning, or at
      its end if not `text_first`. `prefix_tokens` learned tokens stand before the text (AuraFlow's registers); they carry no text,
      and their logits are left alone.
    - `negative`: the variable in which its pipelines hold the negative prompt's `text` (see `guidance.py`).
    - `placement(config, arguments, padding)`: where text is, for a family that cannot be described so. `padding`: whether padding
      counts as text.
    - `image_queries_only`: whether the text does not see the drawn image; then there are no text queries to change.
    - `text_mask`: forward's argument that masks padding out of the text, bool (B, at least T), if it has one.
    - `masks_padding`: whether no query attends to padding anyway.
    - `by_sample`: whether its attention is called for each sample apart.
    - `attention_kwargs`: forward's argument for attention, if any; it then takes `taca_text_mask` and `taca_unconditional`.
    - `lora_targets`: attention-only LoRA targets for PEFT: suffixes, or a regular expression.
    - `lora_reader`: the class in `diffusers.loaders.lora_pipeline` that reads LoRA files for the family's pipelines, if any.
    - `conventions`: its pipeline; None for a transformer that is patched, but neither trained nor drawn with here.
    """

    name: str
    transformer: str
    stock_processors: tuple[str, ...]
    double: Mapping[str, Count] = field(default_factory=dict)
    single: Mapping[str, Count] = field(default_factory=dict)
    double_until: str | None = None
    attention: str = "attn"
    timestep_argument: str = "timestep"
    timesteps: tuple[float, float] = (0.0, 1.0)
    text: tuple[str, ...] = ("encoder_hidden_states",)
    negative: str = NEGATIVE
    text_first: bool = True
    prefix_tokens: int = 0
    placement: Callable[[Any, Arguments, bool], Placement] | None = None
    image_queries_only: bool = False
    text_mask: str | None = None
    masks_padding: bool = False
    by_sample: bool = False
    attention_kwargs: str | None = None
    lora_targets: tuple[str, ...] | str = JOINT_ATTENTION_LINEARS
    lora_reader: str | None = None
    conventions: Conventions | None = None

    def sigma(self, timestep: Tensor) -> Tensor:
        """Return the noise level in [0, 1] of a timestep as this transformer's forward takes it; float32, at least 1-d."""
        image, noise = self.timesteps
        return (timestep.float().reshape(-1) - image) / (noise - image)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the timestep that this transformer's forward takes for a noise level."""
        image, noise = self.timesteps
        return sigma * (noise - image) + image

    def joint_layers(self, config: Any) -> int:
        """Return the number of joint attention modules of a transformer with this config."""
        return sum(count for _, count in self.blocks(config))

    def blocks(self, config: Any) -> list[tuple[str, int]]:
        """Return the lists of blocks with joint attention, and how many of each are joint."""
        counts = {**self.double, **self.single}
        return [(name, count(config) if callable(count) else getattr(config, count)) for name, count in counts.items()]

    def stream(self, module_name: str, config: Any) -> Stream:
        """Whether a joint attention module of a transformer with this config sits in a double- or a single-stream block."""
        blocks, number, *_ = module_name.split(".")
        shared_from = getattr(config, self.double_until) if self.double_until else None
        shared = blocks in self.single or (shared_from is not None and int(number) >= shared_from)
        return "single" if shared else "double"

    def lora_layers(self, transformer: nn.Module) -> list[str]:
        """Return PEFT's `target_modules` for an attention-only LoRA: suffixes of names, or names."""
        if not isinstance(self.lora_targets, str):
            return list(self.lora_targets)
        linears = (name for name, module in transformer.named_modules() if isinstance(module, nn.Linear))
        return [name for name in linears if re.fullmatch(self.lora_targets, name)]

    def samples(self, arguments: Arguments) -> int:
        """Return the number of samples of a forward."""
        return len(arguments[self.text[0]])

    def text_tokens(self, arguments: Arguments) -> int:
        """Return the length of a forward's text."""
        return sum(arguments[name].shape[1] for name in self.text if arguments.get(name) is not None)


def forward_parameters(transformer: nn.Module) -> tuple[str, ...]:
    """The names of a transformer's forward arguments, in order; also where offloading or hooks wrap its forward."""
    return tuple(inspect.signature(transformer.forward).parameters)


def named_arguments(parameters: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A forward call's arguments by name."""
    return {**dict(zip(parameters, args, strict=False)), **kwargs}
