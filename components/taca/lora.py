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
from components.taca.adapters import (
    adapter_config,
    adapter_layers,
    compute_dtype,
    offloaded_by_layer,
    reapply_group_offloading,
    require_separate_projections,
)
from components.taca.install import taca_handle, transformer_of
from components.taca.lora_files import METADATA_KEY, SETTINGS_PREFIX, WEIGHTS, lora_file, read_lora, read_lora_settings
from components.taca.registry import family_of
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
    transformer = transformer_of(transformer)
    _require_room(transformer, adapter_name)
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
    for name, layer in adapter_layers(transformer, adapter_name):
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

    config = adapter_config(transformer, adapter_name)
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


def load_lora(pipe_or_transformer: Any, path: Path, adapter_name: str = "taca", weight: float = 1.0) -> dict[str, Any]:
    """Load an adapter beside any others and activate it with a weight; return the settings stored in it.

    `path` is a file or folder, ours or in one of the layouts of lora_files.py; every key of it must match a layer. Other adapters
    stay active, scaled and frozen as they were (diffusers itself would deactivate them), and so do all other parameters.

    Warns if the settings say that the adapter was trained under TACA and TACA is not enabled: enable it first. Files from
    elsewhere do not store how they were trained, and diffusers' own `pipe.load_lora_weights` cannot warn. Over a base in fp8
    (`enable_layerwise_casting`) the adapter is kept in the dtype that computes. Offloading continues; sequential offloading needs
    the pipeline.

    Raises `DataError` for the file, and `ParameterError` for a name in use and for layers that no adapter acts on: fused
    projections, adapters switched off by `disable_lora`.
    """
    path = Path(path)
    settings = read_lora_settings(path)
    transformer = transformer_of(pipe_or_transformer)
    pipe = None if isinstance(pipe_or_transformer, torch.nn.Module) else pipe_or_transformer
    _require_room(transformer, adapter_name)
    if pipe is None and offloaded_by_layer(transformer):
        raise ParameterError(
            "LoRA over sequential offloading: give the pipeline, load_lora(pipe, ...), or load it before"
        )
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
        for name, layer in adapter_layers(transformer, adapter_name):
            if weight != 1:
                layer.set_scale(adapter_name, weight)
            _keep_precision(layer, adapter_name, weights, name)
        if pipe is None:
            reapply_group_offloading(transformer)
    if settings.get("gamma", 1) != 1 and taca_handle(transformer) is None:
        warnings.warn(
            f"{path}: this LoRA was trained under TACA (gamma {settings['gamma']:g}) and repairs its side effects; "
            "without TACA it has little effect. Call enable_taca(transformer, TemperatureSchedule(...)) before load_lora",
            stacklevel=2,
        )
    return settings


def unload_lora(transformer: Any, adapter_name: str = "taca") -> None:
    """Remove one adapter; removing the last restores the transformer's plain layers."""
    transformer = transformer_of(transformer)
    adapter_config(transformer, adapter_name)
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


def _require_room(transformer: Any, adapter_name: str) -> None:
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


def _keep_precision(layer: Any, adapter_name: str, weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Give an adapter over a base stored in fp8 the dtype that the base computes in: PEFT gives it the one of the storage."""
    dtype = compute_dtype(layer.base_layer)
    if dtype is None:
        return
    for half, linear in (("A", layer.lora_A[adapter_name]), ("B", layer.lora_B[adapter_name])):
        for part, parameter in linear.named_parameters():
            exact = weights.get(f"transformer.{name}.lora_{half}.{part}")
            parameter.data = (parameter if exact is None else exact).to(parameter.device, dtype)


def _active_adapters(transformer: Any) -> list[str]:
    return list(transformer.active_adapters()) if getattr(transformer, "peft_config", None) else []
