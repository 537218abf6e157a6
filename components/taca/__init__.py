"""Temperature-Adjusted Cross-modal Attention (arXiv 2506.07986): images that follow their text better.

Retrieval is in `components/gadms`, the metrics in `components/evaluation`.
"""

from typing import Any

from components.exports import all_names, find

_PUBLIC = {
    "adapter_gate": ("AdapterGate",),
    "adapter_slot": ("AdapterSlot",),
    "attention": ("temperature_adjusted_attention",),
    "cache": ("LatentCache",),
    "families": ("Family",),
    "generation": ("Adapter", "Arm", "apply_arm", "generate"),
    "install": ("TacaHandle", "disable_taca", "enable_taca"),
    "lora": ("add_lora", "load_lora", "save_lora", "unload_lora"),
    "observation": ("observe_attention",),
    "reference": ("load_base", "write_reference"),
    "registry": ("register_family",),
    "schedule": ("TemperatureSchedule",),
    "transfer": ("threshold_for_steps", "transfer_threshold"),
    "velocity": ("VelocityTask",),
}
__all__ = all_names(_PUBLIC)


def __getattr__(name: str) -> Any:
    return find(__name__, _PUBLIC, name)
