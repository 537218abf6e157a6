"""The LoRA that corrects artifacts of the temperature: attention layers only, trained and used only where TACA is on.

LoRA alone is not TACA: the attention change is the method (section 3.3 of the paper). So a LoRA file stores TACA's settings,
loading one without TACA warns, and `AdapterGate` disables it below the threshold, where it was not trained. Files are in
diffusers' LoRA format and load in a plain pipeline.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from components.errors import DataError, ParameterError
from components.taca.families import Family, forward_parameters, named_arguments
from components.taca.install import taca_handle
from components.taca.lora_files import METADATA_KEY, SETTINGS_PREFIX, WEIGHTS, lora_file, read_lora, read_lora_settings
from components.taca.registry import family_of
from components.taca.schedule import TemperatureSchedule
from components.training.distribution import gathered
from components.training.randomness import generator, stream_seed


def add_lora(transformer: Any, rank: int, seed: int, adapter_name: str = "taca") -> int:
    """Freeze a transformer and add a trainable attention-only LoRA with alpha = rank, so that W' = W + BA.

    B is 0 (the output does not change) and A is N(0, 1/rank^2), PEFT's "gaussian", drawn per layer from (seed, layer
    name), so neither global random state nor the order of layers matters. Adapter weights are float32 for any dtype
    of the base. Other adapters stay active or inactive, frozen. Returns the number of trainable parameters.
    Raises `ParameterError` for a rank below 1 or a name in use.
    """
    from peft import LoraConfig

    if rank < 1:
        raise ParameterError(f"LoRA rank = {rank}: must be at least 1")
    _require_free(transformer, adapter_name)
    family = family_of(transformer)
    others = _active_adapters(transformer)
    transformer.requires_grad_(False)
    # PEFT initialises from the global generator; what it draws is replaced below, and the generator left as it was.
    with torch.random.fork_rng(devices=[]), _several_adapters():
        torch.manual_seed(stream_seed(seed, "lora"))
        transformer.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(family.lora_targets)),
            adapter_name=adapter_name,
        )
    transformer.set_adapter([*others, adapter_name])
    transformer.requires_grad_(False)
    for name, layer in _adapter_layers(transformer, adapter_name):
        down, up = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
        down.float().requires_grad_(True)
        up.float().requires_grad_(True)
        noise = torch.randn(down.weight.shape, generator=generator(seed, "lora", name))
        with torch.no_grad():
            down.weight.copy_(noise / rank)
    return sum(parameter.numel() for parameter in transformer.parameters() if parameter.requires_grad)


def save_lora(transformer: Any, folder: Path, metadata: Mapping[str, Any], adapter_name: str = "taca") -> Path:
    """Write an adapter as `folder/pytorch_lora_weights.safetensors`, which diffusers' `load_lora_weights` reads.

    The same adapter gives the same bytes. The adapter of a sharded transformer is gathered; every process must then call this.
    metadata: JSON-able settings to keep with the weights, for TACA `{**schedule.to_mapping(), ...}`; "rank" is added.
    """
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = _adapter_config(transformer, adapter_name)
    weights = gathered(get_peft_model_state_dict(transformer, adapter_name=adapter_name))
    described: dict[str, Any] = {
        "transformer.r": config.r,
        "transformer.lora_alpha": config.lora_alpha,
        "transformer.lora_dropout": config.lora_dropout,
        "transformer.bias": config.bias,
        "transformer.target_modules": sorted(config.target_modules),
    }
    described |= {f"{SETTINGS_PREFIX}{key}": value for key, value in {**metadata, "rank": config.r}.items()}
    folder.mkdir(parents=True, exist_ok=True)
    # One metadata key only, without the usual "format": safetensors writes several in random order.
    save_file(
        {f"transformer.{name}": weight.detach().cpu().contiguous() for name, weight in sorted(weights.items())},
        folder / WEIGHTS,
        metadata={METADATA_KEY: json.dumps(described, sort_keys=True)},
    )
    return folder / WEIGHTS


def load_lora(pipe_or_transformer: Any, path: Path, adapter_name: str = "taca") -> dict[str, Any]:
    """Load an adapter beside any others and activate it; return the settings stored in it.

    `path` is a file or folder, ours or in one of the layouts of lora_files.py; every key of it must match a layer. Other adapters
    stay active, scaled and frozen as they were (diffusers itself would deactivate them), and so do all other parameters.

    Warns if the settings say that the adapter was trained under TACA and TACA is not enabled: enable it first. Files from
    elsewhere do not store how they were trained, and diffusers' own `pipe.load_lora_weights` cannot warn.
    """
    path = Path(path)
    settings = read_lora_settings(path)
    transformer = getattr(pipe_or_transformer, "transformer", pipe_or_transformer)
    pipe = None if transformer is pipe_or_transformer else pipe_or_transformer
    _require_free(transformer, adapter_name)
    weights, config = read_lora(path, transformer)
    others = _active_adapters(transformer)
    with _trainable_kept(transformer), _several_adapters():
        try:
            transformer.load_lora_adapter(
                weights, prefix="transformer", adapter_name=adapter_name, metadata=config, _pipeline=pipe
            )
        except (TypeError, ValueError, RuntimeError) as error:
            if config is None or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = (str(error).splitlines() or [""])[0]
            raise DataError(f"{lora_file(path)}: its settings do not fit its weights ({reason})") from error
        transformer.set_adapter([*others, adapter_name])
    if settings.get("gamma", 1) != 1 and taca_handle(transformer) is None:
        warnings.warn(
            f"{path}: this LoRA was trained under TACA (gamma {settings['gamma']:g}) and repairs its side effects; "
            "without TACA it has little effect. Call enable_taca(transformer, TemperatureSchedule(...)) before load_lora",
            stacklevel=2,
        )
    return settings


def unload_lora(transformer: Any, adapter_name: str = "taca") -> None:
    """Remove one adapter; removing the last restores the transformer's plain layers."""
    _adapter_config(transformer, adapter_name)
    others = [name for name in _active_adapters(transformer) if name != adapter_name]
    with _trainable_kept(transformer):
        if set(transformer.peft_config) == {adapter_name}:
            transformer.unload_lora()
        else:
            transformer.delete_adapters(adapter_name)
            transformer.set_adapter(others)


@contextmanager
def _trainable_kept(transformer: Any) -> Iterator[None]:
    """Restore afterwards, also after an error, which parameters are trainable: PEFT freezes the base and trains what it activates.

    By name, as offloading replaces parameters by others while an adapter is loaded; PEFT itself puts a layer into `base_layer`.
    """
    before = {name: parameter.requires_grad for name, parameter in _named_parameters(transformer)}
    try:
        yield
    finally:
        for name, parameter in _named_parameters(transformer):
            if name in before:
                parameter.requires_grad_(before[name])


def _named_parameters(transformer: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield parameters by their names without adapters."""
    for name, parameter in transformer.named_parameters():
        yield name.replace(".base_layer.", "."), parameter


@contextmanager
def _several_adapters() -> Iterator[None]:
    """Silence PEFT's warning about a second adapter, which is intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        yield


class AdapterGate:
    """Disables one LoRA adapter in every forward below a threshold noise level; other adapters are not touched.

    (The release of the paper unloads all adapters after step 3, the user's own included.) A disabled adapter is skipped: the
    output is bit for bit that of the transformer without it. All samples of a forward must lie on one side (a sampler's do),
    and a forward with the adapter off cannot be trained under gradient checkpointing, whose recomputation would enable it
    again; both are `ParameterError`s. Reads the timestep on the host, so it breaks a full-graph compile.
    """

    def __init__(self, transformer: Any, adapter_name: str, threshold: float) -> None:
        _adapter_config(transformer, adapter_name)
        self.adapter_name = adapter_name
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
        timestep = named_arguments(self._parameters, args, kwargs)["timestep"]
        active = self._schedule.is_active(self._family.sigma(timestep)).tolist()
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
        for _, layer in _adapter_layers(transformer, self.adapter_name):
            self._disabled.append((layer, layer._active_adapter))
            # Assigned directly: PEFT's set_adapter also changes which parameters are trainable.
            layer._active_adapter = [name for name in layer.active_adapters if name != self.adapter_name]

    def _after(self, transformer: Any, args: tuple[Any, ...], output: Any) -> None:
        while self._disabled:
            layer, active = self._disabled.pop()
            layer._active_adapter = active


def _require_free(transformer: Any, adapter_name: str) -> None:
    if adapter_name in getattr(transformer, "peft_config", {}):
        raise ParameterError(
            f"LoRA adapter {adapter_name!r} already exists; choose another name or unload_lora it first"
        )


def _adapter_config(transformer: Any, adapter_name: str) -> Any:
    configs = getattr(transformer, "peft_config", {})
    if adapter_name not in configs:
        raise ParameterError(f"no LoRA adapter {adapter_name!r}; loaded are: {', '.join(configs) or 'none'}")
    return configs[adapter_name]


def _adapter_layers(transformer: Any, adapter_name: str) -> Iterator[tuple[str, Any]]:
    """Yield the layers that have the adapter, with their module names."""
    for name, module in transformer.named_modules():
        if adapter_name in getattr(module, "lora_A", {}):
            yield name, module


def _active_adapters(transformer: Any) -> list[str]:
    return list(transformer.active_adapters()) if getattr(transformer, "peft_config", None) else []
