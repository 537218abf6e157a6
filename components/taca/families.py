"""What differs between the transformers TACA can be installed into: attention layers, timestep unit, processors.

One `Family` per transformer class; supporting another model means one entry here (and, if its attention is called
differently, one processor). Transformers with separate cross-attention (SDXL, PixArt, Wan, ...) have no joint
softmax, so TACA does not apply.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from components.errors import ParameterError
from components.taca.processors import FluxTemperatureProcessor, SD3TemperatureProcessor


@dataclass(frozen=True)
class Family:
    """A transformer class and what TACA needs to know about it.

    joint_attention: the last name of the attention modules over the joint sequence (Flux and SD3: "attn"; SD3's
    "attn2" is over the image alone). stock_processor: class name of the processor that `processor` replaces.
    timestep_scale: timestep at pure noise. layers: the number of joint attention modules, from the transformer's
    config. pass_text_length: whether some blocks see only an already joined sequence. lora_targets: attention-only
    LoRA targets (PEFT suffixes).
    """

    name: str
    transformer: str
    joint_attention: str
    stock_processor: str
    processor: Callable[[object], object]
    timestep_scale: float
    layers: Callable[[Any], int]
    pass_text_length: bool
    lora_targets: tuple[str, ...]

    def sigma(self, timestep: Tensor) -> Tensor:
        """The noise level in [0, 1] of a timestep as this transformer's forward takes it; float32, at least 1-d."""
        return timestep.float().reshape(-1) / self.timestep_scale

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep this transformer's forward takes for a noise level."""
        return sigma * self.timestep_scale


# The suffixes carry "attn." so that they match neither SD3's image-only attn2 nor any feed-forward layer.
_JOINT_ATTENTION_LINEARS = tuple(
    f"attn.{linear}"
    for linear in ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_out.0", "to_q", "to_v")
)

FLUX = Family(
    name="flux",
    transformer="FluxTransformer2DModel",
    joint_attention="attn",
    stock_processor="FluxAttnProcessor",
    processor=FluxTemperatureProcessor,
    timestep_scale=1.0,
    layers=lambda config: config.num_layers + config.num_single_layers,
    pass_text_length=True,
    lora_targets=_JOINT_ATTENTION_LINEARS,
)

SD3 = Family(
    name="sd3",
    transformer="SD3Transformer2DModel",
    joint_attention="attn",
    stock_processor="JointAttnProcessor2_0",
    processor=SD3TemperatureProcessor,
    timestep_scale=1000.0,
    layers=lambda config: config.num_layers,
    pass_text_length=False,
    lora_targets=_JOINT_ATTENTION_LINEARS,
)

FAMILIES = {family.transformer: family for family in (FLUX, SD3)}


def family_of(transformer: nn.Module) -> Family:
    """The family a transformer belongs to, by its class or a base class. `ParameterError` for any other module."""
    for cls in type(transformer).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    wrapped = any(hasattr(transformer, name) for name in ("_orig_mod", "module", "base_model"))
    hint = "; pass the transformer itself, before compiling or wrapping it" if wrapped else ""
    raise ParameterError(
        f"TACA does not support {type(transformer).__name__}; supported are {', '.join(FAMILIES)}{hint}"
    )


def forward_parameters(transformer: nn.Module) -> tuple[str, ...]:
    """The names of a transformer's forward arguments, in order; also where offloading or hooks wrap its forward."""
    return tuple(inspect.signature(transformer.forward).parameters)


def named_arguments(parameters: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A forward call's arguments by name."""
    return {**dict(zip(parameters, args, strict=False)), **kwargs}
