"""What differs between the transformers TACA can be installed into: attention layers, timestep unit, text, processors.

One `Family` per transformer class; another model is one entry (`register_family`) and, if its attention is called
differently, one processor of a few lines; docs/taca.md shows it with CogVideoX. Transformers with separate
cross-attention (SDXL, PixArt, Wan, ...) have no joint softmax, so TACA has no meaning there.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from components.errors import ParameterError
from components.taca.config import Stream
from components.taca.processors import (
    AuraFlowTemperatureProcessor,
    FluxTemperatureProcessor,
    QwenTemperatureProcessor,
    SD3TemperatureProcessor,
    TemperatureProcessor,
)

# The suffixes carry "attn." so that they match neither SD3's image-only attn2 nor any feed-forward layer.
JOINT_ATTENTION_LINEARS = tuple(
    f"attn.{linear}"
    for linear in ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_out.0", "to_q", "to_v")
)


@dataclass(frozen=True)
class Family:
    """A transformer class and what TACA needs to know about it.

    - `stock_processor`: class name of the attention processor that `processor` replaces.
    - `layers`: the number of joint attention modules, from the transformer's config.
    - `joint_attention`: the last name of those modules ("attn"; SD3's "attn2" is over the image alone). Those below
      `single_blocks` are single-stream, the others double-stream.
    - `timestep_scale`: the timestep, as forward takes it, at pure noise.
    - `attention_kwargs`: forward's argument that reaches the attention processors.
    - `prefix_tokens`: learned tokens that the transformer puts before the text (AuraFlow's registers). They carry no
      text, and their logits are left alone.
    - `text_mask`: forward's argument that says which text tokens are no padding, bool (B, at least T), if it has one.
    - `guidance`: how pipelines run the two halves of classifier-free guidance: "named" passes (diffusers'
      `cache_context`), or one "batch" with the unconditional half first.
    - `checkpointed_kwargs`: set where diffusers forgets `attention_kwargs` under gradient checkpointing: the name that
      the blocks know them by.
    - `lora_targets`: attention-only LoRA targets (PEFT suffixes).
    """

    name: str
    transformer: str
    stock_processor: str
    processor: type[TemperatureProcessor]
    layers: Callable[[Any], int]
    timestep_scale: float
    joint_attention: str = "attn"
    single_blocks: str = "single_transformer_blocks"
    attention_kwargs: str = "joint_attention_kwargs"
    prefix_tokens: int = 0
    text_mask: str | None = None
    guidance: Literal["named", "batch"] = "named"
    checkpointed_kwargs: str | None = None
    lora_targets: tuple[str, ...] = JOINT_ATTENTION_LINEARS

    def sigma(self, timestep: Tensor) -> Tensor:
        """The noise level in [0, 1] of a timestep as this transformer's forward takes it; float32, at least 1-d."""
        return timestep.float().reshape(-1) / self.timestep_scale

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep this transformer's forward takes for a noise level."""
        return sigma * self.timestep_scale

    def stream(self, module_name: str) -> Stream:
        """Whether a joint attention module sits in a double- or a single-stream block."""
        return "single" if module_name.split(".", 1)[0] == self.single_blocks else "double"


FLUX = Family(
    name="flux",  # FLUX.1 dev, schnell, Fill and Kontext, whose reference image counts as image
    transformer="FluxTransformer2DModel",
    stock_processor="FluxAttnProcessor",
    processor=FluxTemperatureProcessor,
    layers=lambda config: config.num_layers + config.num_single_layers,
    timestep_scale=1.0,
)

CHROMA = Family(
    name="chroma",
    transformer="ChromaTransformer2DModel",
    stock_processor="FluxAttnProcessor",
    processor=FluxTemperatureProcessor,
    layers=lambda config: config.num_layers + config.num_single_layers,
    timestep_scale=1.0,
    text_mask="attention_mask",  # over text and image; Chroma's text keeps one padding token in it
    checkpointed_kwargs="joint_attention_kwargs",
)

SD3 = Family(
    name="sd3",
    transformer="SD3Transformer2DModel",
    stock_processor="JointAttnProcessor2_0",
    processor=SD3TemperatureProcessor,
    layers=lambda config: config.num_layers,
    timestep_scale=1000.0,
    guidance="batch",
)

QWEN_IMAGE = Family(
    name="qwen-image",
    transformer="QwenImageTransformer2DModel",
    stock_processor="QwenDoubleStreamAttnProcessor2_0",
    processor=QwenTemperatureProcessor,
    layers=lambda config: config.num_layers,
    timestep_scale=1.0,
    attention_kwargs="attention_kwargs",
    text_mask="encoder_hidden_states_mask",
)

AURAFLOW = Family(
    name="auraflow",
    transformer="AuraFlowTransformer2DModel",
    stock_processor="AuraFlowAttnProcessor2_0",
    processor=AuraFlowTemperatureProcessor,
    layers=lambda config: config.num_mmdit_layers + config.num_single_dit_layers,
    timestep_scale=1.0,
    attention_kwargs="attention_kwargs",
    prefix_tokens=8,
    guidance="batch",
    checkpointed_kwargs="attention_kwargs",
)

FAMILIES: dict[str, Family] = {family.transformer: family for family in (FLUX, CHROMA, SD3, QWEN_IMAGE, AURAFLOW)}

# Text and image never share a softmax in these.
_CROSS_ATTENTION = (
    "UNet2D",
    "UNet3D",
    "UNetMotion",
    "PixArt",
    "Sana",
    "Wan",
    "LTX",
    "HunyuanDiT",
    "Kandinsky",
    "StableAudio",
    "Cosmos",
    "Latte",
    "LuminaNextDiT",
    "Allegro",
)


def register_family(family: Family) -> None:
    """Make `enable_taca` know another transformer class; one of the same name is replaced."""
    FAMILIES[family.transformer] = family


def family_of(transformer: nn.Module) -> Family:
    """The family a transformer belongs to, by its class or a base class. `ParameterError` for any other module."""
    for cls in type(transformer).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    name = type(transformer).__name__
    if name.startswith(_CROSS_ATTENTION):
        raise ParameterError(
            f"TACA has no meaning for {name}: its text comes through a cross-attention of its own, and TACA balances "
            "text against image inside one joint softmax"
        )
    wrapped = any(hasattr(transformer, attribute) for attribute in ("_orig_mod", "module", "base_model"))
    hint = "; pass the transformer itself, before compiling or wrapping it" if wrapped else "; see register_family"
    raise ParameterError(f"TACA does not support {name}; supported are {', '.join(FAMILIES)}{hint}")


def forward_parameters(transformer: nn.Module) -> tuple[str, ...]:
    """The names of a transformer's forward arguments, in order; also where offloading or hooks wrap its forward."""
    return tuple(inspect.signature(transformer.forward).parameters)


def named_arguments(parameters: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A forward call's arguments by name."""
    return {**dict(zip(parameters, args, strict=False)), **kwargs}
