"""Read LoRA files in the layouts in use, for one transformer.

A LoRA is a pair of matrices per layer, W' = W + alpha / r B A, with A (r, in) and B (out, r). Files differ in the names:

    transformer.<module>.lora_A.weight, lora_B.weight                     diffusers; ldiex/TACA
    diffusion_model.<module>.lora_A.weight, or lora_down, lora_up         ai-toolkit, ComfyUI; with or without .alpha
    lora_transformer_<module with _ for .>.lora_down.weight, .alpha       ai-toolkit's kohya-like layout
    lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight, .alpha       kohya, in the names of FLUX's own code, q, k and v fused

<module> is looked up among the transformer's own layers; the names of FLUX's own code go through diffusers' converter. Every key
must be half of a pair, or its alpha, for a layer that exists and fits: what diffusers would ignore is an error here.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import DataError
from components.taca.registry import family_of

WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name: a folder loads without naming the file
METADATA_KEY = "lora_adapter_metadata"  # diffusers' key
SETTINGS_PREFIX = "taca."  # diffusers reads "transformer.*" and "text_encoder*.*" under its key and ignores the rest

_PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.", "lora_transformer_", "lora_unet_")
_TEXT_PREFIXES = ("text_encoder", "lora_te")
_HALVES = {"lora_A": "A", "lora_down": "A", "lora_B": "B", "lora_up": "B", "alpha": "alpha"}
_KEY = re.compile(r"(?P<layer>.+?)\.(?P<half>(?:lora_A|lora_B|lora_down|lora_up)(?=(?:\.default)?\.weight$)|alpha$)")

Pair = dict[str, Tensor]  # "A" (r, in), "B" (out, r), and "alpha" () where the file has one


def lora_file(path: Path) -> Path:
    """Return the file of a LoRA given as a file or a folder: diffusers' name there, else the only safetensors file."""
    path = Path(path)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise DataError(f"{path}: only .safetensors files are read (others can run code); convert it first")
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"{path}: no LoRA there; give a .safetensors file, or a folder with {WEIGHTS} or one other")
    raise DataError(f"{path}: holds several LoRAs, give one of {', '.join(file.name for file in found)}")


def read_lora_settings(path: Path) -> dict[str, Any]:
    """Read the settings that `save_lora` stored; {} for an adapter from elsewhere. `DataError` without a readable file."""
    described = _describe(lora_file(path))
    return {
        key.removeprefix(SETTINGS_PREFIX): value for key, value in described.items() if key.startswith(SETTINGS_PREFIX)
    }


def read_lora(path: Path, transformer: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Read weights and PEFT settings for diffusers' `load_lora_adapter(..., prefix="transformer")`.

    Keys are `transformer.<module>.lora_A.weight` and `...lora_B.weight`. Settings are those of the file, or None where it has none
    and scaling is 1: an alpha that differs from the rank is multiplied into B. Raises `DataError` for text-encoder weights, keys
    that are not LoRA keys, layers that the transformer does not have, shapes that do not fit, and incomplete pairs.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = lora_file(path)
    described = _describe(file)
    try:
        stored = load_file(file, device="cpu")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: cannot be read ({_first_line(error)}); get it again") from error
    pairs = _pairs(stored, file)
    settings = {key: value for key, value in described.items() if key.startswith("transformer.")}
    if any("alpha" in pair for pair in pairs.values()):
        settings = {}
    layers = _layers(transformer)
    resolved: dict[str, Pair] = {}
    unknown: list[str] = []
    for name, pair in pairs.items():
        found = _resolve(name, _scaled(pair), layers, transformer)
        unknown += [] if found else [name]
        if twice := found.keys() & resolved.keys():
            raise DataError(f"{file}: has {sorted(twice)[0]} twice, once as {name}; keep one")
        resolved |= found
    if unknown:
        raise DataError(
            f"{file}: {len(unknown)} of {len(pairs)} layers are not in {type(transformer).__name__} "
            f"({_some(unknown)}); it is a LoRA for another model, or of an unknown layout"
        )
    for name, pair in resolved.items():
        _require_fit(name, pair, layers[name], file)
    weights = {f"transformer.{name}.lora_{half}.weight": pair[half] for name, pair in resolved.items() for half in "AB"}
    return weights, settings or None


def _describe(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            described = json.loads((opened.metadata() or {}).get(METADATA_KEY, "{}"))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise DataError(f"{file}: not a LoRA adapter in a known format ({_first_line(error)})") from error
    if not isinstance(described, dict):
        raise DataError(f"{file}: its {METADATA_KEY} is not a mapping; not a LoRA adapter in a known format")
    return described


def _pairs(stored: Mapping[str, Tensor], file: Path) -> dict[str, Pair]:
    """Group the file's tensors by layer, in the file's names."""
    if text := [key for key in stored if key.startswith(_TEXT_PREFIXES)]:
        raise DataError(
            f"{file}: {len(text)} keys are for a text encoder ({_some(text)}), which load_lora does not load; "
            "use a file for the transformer only, or pipe.load_lora_weights"
        )
    pairs: dict[str, Pair] = {}
    unknown_keys: list[str] = []
    for key, tensor in sorted(stored.items()):
        match = _KEY.match(key)
        if match is None:
            unknown_keys.append(key)
            continue
        half = _HALVES[match["half"]]
        if half in pairs.setdefault(match["layer"], {}):
            raise DataError(f"{file}: {key} has the same layer and half as another key; keep one")
        pairs[match["layer"]][half] = tensor
    if unknown_keys or not pairs:
        raise DataError(
            f"{file}: {len(unknown_keys)} keys are not LoRA keys ({_some(unknown_keys) or 'the file is empty'})"
        )
    for layer, pair in pairs.items():
        if not {"A", "B"} <= pair.keys() or pair["A"].ndim != 2 or pair["B"].ndim != 2:
            raise DataError(
                f"{file}: {layer} needs two matrices, down (A) and up (B); the file is cut or of another kind"
            )
        if pair["A"].shape[0] != pair["B"].shape[1] or pair.get("alpha", torch.zeros(())).numel() != 1:
            raise DataError(f"{file}: {layer} has A {tuple(pair['A'].shape)}, B {tuple(pair['B'].shape)}: ranks differ")
    return pairs


def _scaled(pair: Pair) -> Pair:
    """Return the pair with alpha / r multiplied into B."""
    scale = float(pair["alpha"]) / len(pair["A"]) if "alpha" in pair else 1.0
    return {"A": pair["A"], "B": pair["B"] if scale == 1.0 else pair["B"].float() * scale}


def _layers(transformer: nn.Module) -> dict[str, Any]:
    """Return the linear layers by name, with or without an adapter."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def _resolve(name: str, pair: Pair, layers: Mapping[str, Any], transformer: nn.Module) -> dict[str, Pair]:
    """Map a layer of the file to the transformer's: one, several for fused projections, {} for none."""
    for prefix in (*_PREFIXES, ""):
        if name.startswith(prefix):
            bare = name.removeprefix(prefix)
            if bare in layers:
                return {bare: pair}
            if prefix.endswith("_"):
                flat = [layer for layer in layers if layer.replace(".", "_") == bare]
                if len(flat) == 1:
                    return {flat[0]: pair}
            return _converted(bare.replace(".", "_"), pair, transformer)
    return {}


def _converted(flat_name: str, pair: Pair, transformer: nn.Module) -> dict[str, Pair]:
    """Map a layer in the names of a family's own code with diffusers' reader; {} if that does not know it."""
    reader = family_of(transformer).lora_reader
    if reader is None:
        return {}
    from diffusers.loaders import lora_pipeline

    kohya = {f"lora_unet_{flat_name}.lora_{way}.weight": pair[half] for way, half in (("down", "A"), ("up", "B"))}
    try:
        found = getattr(lora_pipeline, reader).lora_state_dict(kohya)
    except (ValueError, AssertionError, KeyError, NotImplementedError):
        return {}
    names = {key.removeprefix("transformer.").rsplit(".lora_", 1)[0] for key in found}
    bare = {key.removeprefix("transformer."): tensor for key, tensor in found.items()}
    return {name: {half: bare[f"{name}.lora_{half}.weight"] for half in "AB"} for name in sorted(names)}


def _require_fit(name: str, pair: Pair, layer: Any, file: Path) -> None:
    wanted = (layer.in_features, layer.out_features)
    found = (pair["A"].shape[1], pair["B"].shape[0])
    if wanted != found:
        raise DataError(
            f"{file}: {name} maps {found[0]} to {found[1]} channels, this transformer's maps {wanted[0]} to {wanted[1]}; "
            "it is a LoRA for another model"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
