"""Temperature-Adjusted Cross-modal Attention (arXiv 2506.07986): images that follow their text better.

Retrieval is in `components/gadms`, the metrics in `components/evaluation`.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "AdapterGate": "lora",
    "Arm": "generation",
    "Family": "families",
    "LatentCache": "cache",
    "TacaHandle": "install",
    "TemperatureSchedule": "schedule",
    "VelocityTask": "velocity",
    "add_lora": "lora",
    "apply_arm": "generation",
    "disable_taca": "install",
    "enable_taca": "install",
    "generate": "generation",
    "load_base": "reference",
    "load_lora": "lora",
    "observe_attention": "observation",
    "register_family": "registry",
    "save_lora": "lora",
    "temperature_adjusted_attention": "attention",
    "threshold_for_fraction": "transfer",
    "transfer_threshold": "transfer",
    "unload_lora": "lora",
    "write_reference": "reference",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
