"""One place for a LoRA in a pipeline, filled by many in turn: the base is read once and stays as it is."""

from contextlib import ExitStack
from typing import Any

from components.taca.adapter_gate import AdapterGate
from components.taca.adapters import adapter_layers, compute_dtype
from components.taca.install import transformer_of
from components.taca.lora import load_lora, unload_lora
from components.taca.lora_files import LoraFile, read_lora

_NAME = "swapped"


class AdapterSlot:
    """Holds one LoRA at a time beside the pipeline's other adapters.

    A LoRA with the layers and ranks of the one before takes its place by diffusers' hot-swapping: the matrices are overwritten,
    no layer is made, and offloading and compiled graphs stay. Any other is loaded after the one before is unloaded. The picture
    is bit for bit that of a pipeline with this LoRA alone.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe, self._transformer = pipe, transformer_of(pipe)
        self._shape: dict[str, Any] | None = None  # of the LoRA in place, None if it cannot be overwritten
        self._inside, self._gate = False, ExitStack()
        self.swaps = 0
        """How many LoRAs took the place of one before them without loading."""

    def fill(self, adapter: Any) -> None:
        """Put an `Adapter` (components.taca.generation) in place, active from its threshold up. Raises as `load_lora` does."""
        lora = read_lora(adapter.path, self._transformer, self._pipe)
        shape = self._shape_of(lora)
        self._gate.close()
        if self._inside and shape is not None and shape == self._shape:
            self._overwrite(lora, adapter.weight)
            self.swaps += 1
        else:
            self.empty()
            load_lora(self._pipe, adapter.path, _NAME, adapter.weight)
            self._inside, self._shape = True, shape
        if (threshold := adapter.active_from()) > 0:
            self._gate.enter_context(AdapterGate(self._pipe, _NAME, threshold))

    def empty(self) -> None:
        """Remove the LoRA that is in place, if any."""
        self._gate.close()
        if self._inside:
            unload_lora(self._pipe, _NAME)
        self._inside, self._shape = False, None

    def _overwrite(self, lora: LoraFile, weight: float) -> None:
        self._transformer.load_lora_adapter(
            lora.transformer,
            prefix="transformer",
            adapter_name=_NAME,
            metadata=lora.settings_of("transformer"),
            hotswap=True,
        )
        for _, layer in adapter_layers(self._transformer, _NAME):
            layer.scaling[_NAME] *= weight  # hot-swapping sets alpha / r

    def _shape_of(self, lora: LoraFile) -> dict[str, Any] | None:
        """Return what must be alike for one LoRA to be overwritten by another; None for one that changes more than layers."""
        layers_only = not lora.text and not lora.whole and all(key.endswith(_MATRICES) for key in lora.transformer)
        if not layers_only or any(map(compute_dtype, self._transformer.modules())):
            return None
        settings = lora.settings_of("transformer") or {}
        fixed = {key: settings.get(f"transformer.{key}") or None for key in _FIXED}
        return {**{key: tuple(tensor.shape) for key, tensor in lora.transformer.items()}, **fixed}


_MATRICES = (".lora_A.weight", ".lora_B.weight")
_FIXED = ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "lora_dropout")
"""Settings that hot-swapping does not change."""
