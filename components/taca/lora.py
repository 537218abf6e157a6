"""The LoRA that corrects artifacts of the temperature: attention layers only by default, trained and used only where TACA is on.

LoRA alone is not TACA: the attention change is the method (section 3.3 of the paper). So a LoRA file stores TACA's settings,
loading one without TACA warns, and `AdapterGate` disables it below the threshold, where it was not trained. Files are in
diffusers' LoRA format and load in a plain pipeline.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from components.errors import DataError, ParameterError
from components.taca.adapters import (
    NORMS,
    active_adapters,
    adapter_config,
    adapter_layers,
    beyond_layers,
    compute_dtype,
    offloaded_by_layer,
    reapply_group_offloading,
    refuse_fusing,
    refuse_merging,
    require_room,
    several_adapters,
    text_encoders,
    trainable_kept,
)
from components.taca.install import taca_handle, transformer_of
from components.taca.lora_files import METADATA_KEY, SETTINGS_PREFIX, WEIGHTS, LoraFile, read_lora, read_lora_settings
from components.taca.lora_pairs import require_targets
from components.taca.lora_readers import loader_of
from components.taca.registry import family_of
from components.taca.text_lora import load_into, without_reports
from components.training.distribution import gathered
from components.training.randomness import generator, stream_seed


def add_lora(
    transformer: Any,
    rank: int,
    seed: int,
    adapter_name: str = "taca",
    *,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
) -> int:
    """Freeze a transformer and add a trainable LoRA, W' = W + alpha / rank BA.

    alpha: None for the rank, so that W' = W + BA. targets: linear layers by the ends of their names; None for the family's joint
    attention layers alone, as in the paper. B is 0 (the output does not change) and A is N(0, 1/rank^2), PEFT's "gaussian", drawn
    per layer from (seed, layer name), so neither global random state nor the order of layers matters. Adapter weights are float32
    for any dtype of the base. Other adapters stay active or inactive, frozen. Returns the number of trainable parameters.
    Raises `ParameterError` for a rank below 1, an alpha not above 0, a target without a linear layer, or a name in use.
    """
    from peft import LoraConfig

    if rank < 1:
        raise ParameterError(f"LoRA rank = {rank}: must be at least 1")
    if alpha is not None and not 0 < alpha < float("inf"):
        raise ParameterError(f"LoRA alpha = {alpha}: must be above 0")
    transformer = transformer_of(transformer)
    require_room(transformer, adapter_name)
    family = family_of(transformer)
    if not hasattr(transformer, "add_adapter"):
        raise ParameterError(f"{family.transformer} takes no LoRA: diffusers gives it no adapters")
    if targets is not None:
        require_targets(transformer, targets)
    others = active_adapters(transformer)
    transformer.requires_grad_(False)
    # PEFT initialises from the global generator; what it draws is replaced below, and the generator left as it was.
    with torch.random.fork_rng(devices=[]), several_adapters():
        torch.manual_seed(stream_seed(seed, "lora"))
        transformer.add_adapter(
            LoraConfig(
                r=rank,
                lora_alpha=rank if alpha is None else alpha,  # PEFT takes fractions too
                init_lora_weights="gaussian",
                target_modules=family.lora_layers(transformer) if targets is None else list(targets),
            ),
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
    refuse_fusing(transformer)
    refuse_merging(transformer)
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

    `path` is a file or folder, ours or in one of the layouts of lora_files.py; every key of it must match a layer. Parts for text
    encoders are loaded into those of the pipeline. Other adapters stay active, scaled and frozen as they were (diffusers itself
    would deactivate them), and so do all other parameters. A file that replaces norms (a control LoRA of FLUX) is handed to the
    pipeline's own loader; it must come before others and be unloaded after them.

    Warns if the settings say that the adapter was trained under TACA and TACA is not enabled: enable it first. Files from
    elsewhere do not store how they were trained, and diffusers' own `pipe.load_lora_weights` cannot warn. Over a base in fp8
    (`enable_layerwise_casting`) the adapter is kept in the dtype that computes. Offloading continues; sequential offloading needs
    the pipeline, and so do parts for text encoders. Fusing projections later is refused while the adapter is over them.

    Raises `DataError` for the file, and `ParameterError` for a name in use, for parts that the pipeline has no place for, and for
    layers that no adapter acts on: fused projections, adapters switched off by `disable_lora`.
    """
    path = Path(path)
    settings = read_lora_settings(path)
    transformer, pipe = transformer_of(pipe_or_transformer), _pipeline(pipe_or_transformer)
    require_room(transformer, adapter_name)
    if pipe is None and offloaded_by_layer(transformer):
        raise ParameterError(
            "LoRA over sequential offloading: give the pipeline, load_lora(pipe, ...), or load it before"
        )
    lora = read_lora(path, transformer, pipe)
    models = {"transformer": transformer, **{part: getattr(pipe, part) for part in lora.text}}
    for model in models.values():
        require_room(model, adapter_name)
    if lora.whole and any(
        getattr(model, "peft_config", None) for model in (transformer, *text_encoders(pipe).values())
    ):
        raise ParameterError(f"{lora.file}: replaces weights of the model itself, so load it before other adapters")
    if any("lora_magnitude_vector" in key for key in lora.transformer) and any(
        map(compute_dtype, transformer.modules())
    ):
        raise ParameterError(
            f"{lora.file}: a DoRA needs norms of the weights, which are stored in fp8 (enable_layerwise_casting); use a plain "
            "LoRA, or no layerwise casting"
        )
    others = {part: active_adapters(model) for part, model in models.items()}
    with ExitStack() as kept:
        kept.enter_context(several_adapters())
        for model in models.values():
            kept.enter_context(trainable_kept(model))
        try:
            _load(lora, pipe, transformer, adapter_name)
        except (TypeError, ValueError, RuntimeError) as error:
            for part, model in models.items():
                _remove(model, adapter_name)
                if others[part]:
                    model.set_adapter(others[part])
            if not lora.settings or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = (str(error).splitlines() or [""])[0]
            raise DataError(f"{lora.file}: its settings do not fit its weights ({reason})") from error
        for part, model in models.items():
            if adapter_name not in getattr(model, "peft_config", {}):
                continue  # the file is for text encoders alone
            model.set_adapter([*others[part], adapter_name])
            for name, layer in adapter_layers(model, adapter_name):
                if weight != 1:
                    layer.set_scale(adapter_name, weight)
                if model is transformer:
                    _keep_precision(layer, adapter_name, lora.transformer, name)
                else:
                    layer.requires_grad_(False)  # as diffusers leaves it
        if lora.transformer:
            changed = (*lora.text, *((NORMS,) if lora.whole else ()))
            adapter_config(transformer, adapter_name).taca_beyond_layers = changed
        if pipe is None:
            reapply_group_offloading(transformer)
    refuse_fusing(transformer)
    refuse_merging(transformer)
    if settings.get("gamma", 1) != 1 and taca_handle(transformer) is None:
        warnings.warn(
            f"{path}: this LoRA was trained under TACA (gamma {settings['gamma']:g}) and repairs its side effects; "
            "without TACA it has little effect. Call enable_taca(transformer, TemperatureSchedule(...)) before load_lora",
            stacklevel=2,
        )
    return settings


def unload_lora(pipe_or_transformer: Any, adapter_name: str = "taca") -> None:
    """Remove one adapter; removing the last restores plain layers.

    Raises `ParameterError` if there is none of this name, and without the pipeline for one that is also in its text encoders.
    """
    transformer, pipe = transformer_of(pipe_or_transformer), _pipeline(pipe_or_transformer)
    encoders = list(text_encoders(pipe).values())
    models = [model for model in (transformer, *encoders) if adapter_name in getattr(model, "peft_config", {})]
    if not models:
        adapter_config(transformer, adapter_name)  # says what is there
    beyond = beyond_layers(transformer, adapter_name, pipe)
    if beyond and pipe is None:
        raise ParameterError(
            f"LoRA adapter {adapter_name!r} also changes {' and '.join(beyond)}: give the pipeline, unload_lora(pipe, ...)"
        )
    if NORMS in beyond:
        found = {name for model in (transformer, *encoders) for name in getattr(model, "peft_config", {})}
        if others := found - {adapter_name}:
            raise ParameterError(
                f"LoRA adapter {adapter_name!r} replaces weights of the model itself: unload {', '.join(sorted(others))} before it"
            )
        with trainable_kept(transformer):
            pipe.unload_lora_weights(reset_to_overwritten_params=True)
        return
    for model in models:
        with trainable_kept(model):
            _remove(model, adapter_name)


def _load(lora: LoraFile, pipe: Any, transformer: Any, adapter_name: str) -> None:
    """Load the parts of a file by diffusers' loaders. Raises what they raise, and `ValueError` for settings without a layer."""
    if lora.whole:
        with without_reports():
            pipe.load_lora_weights(str(lora.file), adapter_name=adapter_name)
        return
    if lora.transformer:
        transformer.load_lora_adapter(
            lora.transformer,
            prefix="transformer",
            adapter_name=adapter_name,
            metadata=lora.settings_of("transformer"),
            _pipeline=pipe,
        )
    loader = loader_of(family_of(transformer).lora_reader)
    for part, weights in lora.text.items():
        load_into(pipe, part, weights, lora.settings_of(part), loader, adapter_name)


def _remove(model: Any, adapter_name: str) -> None:
    """Remove one adapter, if it is there, from a transformer or a text encoder."""
    from diffusers.utils import recurse_remove_peft_layers

    configs = getattr(model, "peft_config", {})
    if adapter_name not in configs:
        return
    others = [name for name in active_adapters(model) if name != adapter_name]
    if set(configs) != {adapter_name}:
        delete = model.delete_adapters if hasattr(model, "delete_adapters") else model.delete_adapter
        delete(adapter_name)
        model.set_adapter(others)
    elif hasattr(model, "unload_lora"):
        model.unload_lora()
    else:  # a model of transformers, whose own delete_adapter leaves the wrapped layers
        recurse_remove_peft_layers(model)
        del model.peft_config
        model._hf_peft_config_loaded = False


def _pipeline(pipe_or_transformer: Any) -> Any:
    return None if isinstance(pipe_or_transformer, torch.nn.Module) else pipe_or_transformer


def _keep_precision(layer: Any, adapter_name: str, weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Give an adapter over a base stored in fp8 the dtype that the base computes in: PEFT gives it the one of the storage."""
    dtype = compute_dtype(layer.base_layer)
    if dtype is None:
        return
    for half, linear in (("A", layer.lora_A[adapter_name]), ("B", layer.lora_B[adapter_name])):
        for part, parameter in linear.named_parameters():
            exact = weights.get(f"transformer.{name}.lora_{half}.{part}")
            parameter.data = (parameter if exact is None else exact).to(parameter.device, dtype)
