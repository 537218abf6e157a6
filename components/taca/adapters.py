"""LoRA adapters as PEFT and diffusers hold them in a transformer: their layers, and what keeps them from acting."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from components.errors import ParameterError
from components.taca.quantization import is_quantized

NORMS = "attention norms"
_FUSE, _MERGE = "fuse_qkv_projections", "fuse_lora"
_PROJECTIONS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


def adapter_config(transformer: Any, adapter_name: str) -> Any:
    """Return the settings of an adapter. Raises ParameterError if there is none of this name."""
    configs = getattr(transformer, "peft_config", {})
    if adapter_name not in configs:
        raise ParameterError(f"no LoRA adapter {adapter_name!r}; loaded are: {', '.join(configs) or 'none'}")
    return configs[adapter_name]


def active_adapters(model: Any) -> list[str]:
    """Return the adapters of a transformer or a text encoder that act."""
    return list(model.active_adapters()) if getattr(model, "peft_config", None) else []


def adapter_layers(transformer: Any, adapter_name: str) -> Iterator[tuple[str, Any]]:
    """Yield the layers that have the adapter, with their module names."""
    for name, module in transformer.named_modules():
        if adapter_name in getattr(module, "lora_A", {}):
            yield name, module


def text_encoders(pipe: Any) -> dict[str, Any]:
    """Return the text encoders that a pipeline has, by name."""
    components = getattr(pipe, "components", {})
    return {name: part for name, part in components.items() if name.startswith("text_encoder") and part is not None}


def beyond_layers(transformer: Any, adapter_name: str, pipe: Any = None) -> tuple[str, ...]:
    """Return what an adapter that `load_lora` loaded changes beside the transformer's layers: text encoders by name, and NORMS."""
    config = getattr(transformer, "peft_config", {}).get(adapter_name)
    encoders = text_encoders(pipe).items()
    found = [name for name, encoder in encoders if adapter_name in getattr(encoder, "peft_config", {})]
    return tuple(dict.fromkeys((*getattr(config, "taca_beyond_layers", ()), *found)))


def refuse_fusing(transformer: Any) -> None:
    """Let `fuse_qkv_projections` of a transformer raise ParameterError while an adapter is over projections: it would drop out."""
    if hasattr(type(transformer), _FUSE):
        transformer.__dict__[_FUSE] = partial(_fuse_without_adapters, transformer)


def _fuse_without_adapters(transformer: Any) -> None:
    for name, module in transformer.named_modules():
        over = set(getattr(module, "lora_A", ())) - set(getattr(module, "merged_adapters", ()))
        if over and name.rsplit(".", 1)[-1] in _PROJECTIONS:
            raise ParameterError(
                f"fuse_qkv_projections: LoRA {', '.join(sorted(over))} is over the projections of {type(transformer).__name__} and "
                "would no longer act on them; call fuse_lora() first, or unload_lora"
            )
    getattr(type(transformer), _FUSE)(transformer)


def refuse_merging(transformer: Any) -> None:
    """Let `fuse_lora` of a quantised transformer raise ParameterError: the merged weights would be rounded once more."""
    if is_quantized(transformer) and hasattr(type(transformer), _MERGE):
        transformer.__dict__[_MERGE] = partial(_no_merging, type(transformer).__name__)


def _no_merging(name: str, *_: Any, **__: Any) -> None:
    raise ParameterError(
        f"fuse_lora: the weights of this {name} are quantised, and a LoRA cannot be merged into them; leave it beside them, or "
        "read the base without quantisation"
    )


def require_room(transformer: Any, adapter_name: str) -> None:
    """Raise ParameterError unless an adapter of this name would act."""
    if adapter_name in getattr(transformer, "peft_config", {}):
        raise ParameterError(
            f"LoRA adapter {adapter_name!r} already exists; choose another name or unload_lora it first"
        )
    require_separate_projections(transformer)
    if fused := {name for module in transformer.modules() for name in getattr(module, "merged_adapters", ())}:
        raise ParameterError(
            f"LoRA adapter {', '.join(sorted(fused))} is fused into its layers, where no other acts; call unfuse_lora(), or "
            "unload_lora() to keep the fused weights"
        )
    disabled = [
        name for name, module in transformer.named_modules() if getattr(module, "disable_adapters", False) is True
    ]
    if disabled:
        raise ParameterError(
            f"LoRA adapters of {type(transformer).__name__} are disabled, and so would be another; call enable_lora() first"
        )


def require_separate_projections(transformer: Any) -> None:
    """Raise ParameterError for fused attention projections: they are not the layers that an adapter is over."""
    if any(getattr(module, "fused_projections", False) for module in transformer.modules()):
        raise ParameterError(
            f"LoRA over fused projections of {type(transformer).__name__} has no effect on them; call "
            "unfuse_qkv_projections() first"
        )


def compute_dtype(layer: torch.nn.Module) -> torch.dtype | None:
    """Return the dtype that a layer computes in if diffusers stores it in another (layerwise casting), else None."""
    registry = getattr(layer, "_diffusers_hook", None)
    casting = registry.get_hook("layerwise_casting") if registry else None
    return casting.compute_dtype if casting else None


def offloaded_by_layer(transformer: Any) -> bool:
    """Whether accelerate moves each layer for itself (sequential offloading), so that new layers need hooks of their own."""
    hooks = (getattr(module, "_hf_hook", None) for module in transformer.modules() if module is not transformer)
    return any(getattr(hook, "offload", False) for hook in hooks)


def reapply_group_offloading(transformer: Any) -> None:
    """Let diffusers' group offloading, if enabled, know of layers that were added."""
    from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading

    _maybe_remove_and_reapply_group_offloading(transformer)


@contextmanager
def several_adapters() -> Iterator[None]:
    """Silence PEFT's warning about a second adapter, which is intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        yield


@contextmanager
def trainable_kept(model: Any) -> Iterator[None]:
    """Restore afterwards, also after an error, which parameters are trainable: PEFT freezes the base and trains what it activates.

    By name, as offloading replaces parameters by others while an adapter is loaded; PEFT itself puts a layer into `base_layer`.
    """
    before = {name: parameter.requires_grad for name, parameter in _named_parameters(model)}
    try:
        yield
    finally:
        for name, parameter in _named_parameters(model):
            if name in before:
                parameter.requires_grad_(before[name])


def _named_parameters(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield parameters by their names without adapters."""
    for name, parameter in model.named_parameters():
        yield name.replace(".base_layer.", "."), parameter
