"""The gate that disables a LoRA adapter where it was not trained: below a threshold noise level."""

from typing import Any

import torch

from components.errors import ParameterError
from components.taca.adapters import adapter_config, adapter_layers, beyond_layers, require_separate_projections
from components.taca.families import Family, forward_parameters, named_arguments
from components.taca.install import transformer_of
from components.taca.registry import family_of
from components.taca.schedule import TemperatureSchedule


class AdapterGate:
    """Disables one LoRA adapter in every forward below a threshold noise level; other adapters are not touched.

    (The release of the paper unloads all adapters after step 3, the user's own included.) A disabled adapter is skipped: the
    output is bit for bit that of the transformer without it. All samples of a forward must lie on one side (a sampler's do),
    and a forward with the adapter off cannot be trained under gradient checkpointing, whose recomputation would enable it
    again; both are `ParameterError`s, as is an adapter that no gate can switch: one that is fused into the weights or lies over
    fused projections, at any time, and one that also changes text encoders or norms, which act at every step. Reads the timestep
    on the host, so it breaks a full-graph compile.
    """

    def __init__(self, pipe_or_transformer: Any, adapter_name: str, threshold: float) -> None:
        transformer = transformer_of(pipe_or_transformer)
        if beyond := beyond_layers(transformer, adapter_name, pipe_or_transformer):
            raise ParameterError(
                f"AdapterGate: LoRA {adapter_name!r} also changes {' and '.join(beyond)}, which act at every step; use "
                "it without a threshold (0), or a file for the transformer's layers only"
            )
        adapter_config(transformer, adapter_name)
        self.adapter_name = adapter_name
        self._layers(transformer)
        self._family: Family = family_of(transformer)
        self._parameters = forward_parameters(transformer)
        self._schedule = TemperatureSchedule(threshold=threshold)
        self._disabled: list[tuple[Any, Any]] = []
        self._hooks = [
            transformer.register_forward_pre_hook(self._before, with_kwargs=True),
            transformer.register_forward_hook(self._after, always_call=True),
        ]

    def remove(self) -> None:
        """Stop gating; the adapter is then active at every noise level. Safe to call twice."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __enter__(self) -> "AdapterGate":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _before(self, transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep = named_arguments(self._parameters, args, kwargs)[self._family.timestep_argument]
        active = self._schedule.is_active(self._family.sigma(timestep)).tolist()
        layers = self._layers(transformer)
        if all(active):
            return
        if any(active):
            raise ParameterError(
                f"AdapterGate: one batch mixes noise levels above and below {self._schedule.threshold:g}; split it"
            )
        if torch.is_grad_enabled() and getattr(transformer, "gradient_checkpointing", False):
            raise ParameterError(
                f"AdapterGate: cannot train below sigma {self._schedule.threshold:g} with gradient checkpointing; "
                "disable checkpointing or remove the gate"
            )
        for layer in layers:
            self._disabled.append((layer, layer._active_adapter))
            # Assigned directly: PEFT's set_adapter also changes which parameters are trainable.
            layer._active_adapter = [name for name in layer.active_adapters if name != self.adapter_name]

    def _after(self, transformer: Any, args: tuple[Any, ...], output: Any) -> None:
        while self._disabled:
            layer, active = self._disabled.pop()
            layer._active_adapter = active

    def _layers(self, transformer: Any) -> list[Any]:
        """Return the layers of the adapter, none of them fused."""
        require_separate_projections(transformer)
        layers = [layer for _, layer in adapter_layers(transformer, self.adapter_name)]
        if fused := {name for layer in layers for name in layer.merged_adapters}:
            raise ParameterError(
                f"AdapterGate: {', '.join(sorted(fused))} is fused into the weights, where no gate can switch "
                f"{self.adapter_name!r}; call unfuse_lora() first"
            )
        return layers
