"""LoRA adapters as PEFT and diffusers hold them in a transformer: their layers, and what keeps them from acting."""

from collections.abc import Iterator
from typing import Any

import torch

from components.errors import ParameterError


def adapter_config(transformer: Any, adapter_name: str) -> Any:
    """Return the settings of an adapter. Raises ParameterError if there is none of this name."""
    configs = getattr(transformer, "peft_config", {})
    if adapter_name not in configs:
        raise ParameterError(f"no LoRA adapter {adapter_name!r}; loaded are: {', '.join(configs) or 'none'}")
    return configs[adapter_name]


def adapter_layers(transformer: Any, adapter_name: str) -> Iterator[tuple[str, Any]]:
    """Yield the layers that have the adapter, with their module names."""
    for name, module in transformer.named_modules():
        if adapter_name in getattr(module, "lora_A", {}):
            yield name, module


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
