"""Read LoRA files in the layouts in use, for one transformer.

A LoRA is a pair of matrices per layer, W' = W + alpha / r B A, with A (r, in) and B (out, r). Files differ in the names:

    transformer.<module>.lora_A.weight, lora_B.weight                     diffusers; ldiex/TACA
    diffusion_model.<module>.lora_A.weight, or lora_down, lora_up         ai-toolkit, ComfyUI; with or without .alpha
    lora_transformer_<module with _ for .>.lora_down.weight, .alpha       ai-toolkit's kohya-like layout
    lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight, .alpha       kohya, in the names of FLUX's own code, q, k and v fused
    double_blocks.0.processor.qkv_lora1.down.weight                       XLabs
    transformer.<module>.lora.down.weight, <module>_lora.down.weight      diffusers before it used PEFT

<module> is looked up among the transformer's own layers; every other layout goes, the whole file at once, through the reader of
diffusers' pipeline (lora_readers.py). Every key must be half of a pair, its bias or its alpha, for a layer that exists and fits:
what diffusers would ignore is an error here, unless it is zero.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import DataError
from components.taca.lora_readers import read_by_diffusers
from components.taca.registry import family_of

WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name: a folder loads without naming the file
METADATA_KEY = "lora_adapter_metadata"  # diffusers' key
SETTINGS_PREFIX = "taca."  # diffusers reads "transformer.*" and "text_encoder*.*" under its key and ignores the rest

_PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.", "lora_transformer_", "lora_unet_")
_TEXT_PREFIXES = ("text_encoder", "lora_te")
_HALVES = {
    "lora_A.weight": "A",
    "lora_down.weight": "A",
    "lora_B.weight": "B",
    "lora_up.weight": "B",
    "lora_B.bias": "bias",
    "alpha": "alpha",
}
_KEY = re.compile(
    r"(?P<layer>.+?)\.(?P<half>(?:lora_A|lora_B|lora_down|lora_up)(?:\.default)?\.weight|lora_B(?:\.default)?\.bias|alpha)$"
)

# Adapters of other kinds, and LoRAs in names that diffusers has no reader for, by a part of their keys.
_OTHER_LAYOUTS = {
    r"dora_scale|lora_magnitude_vector": "a DoRA",
    r"\.hada_w": "a LoHa (LyCORIS)",
    r"\.lokr_w": "a LoKr (LyCORIS)",
    r"\.oft_|oft_blocks|oft_R": "an OFT adapter",
    r"\.ia3_|on_input$": "an (IA)3 adapter",
    r"query_norm\.scale|\.norm_(added_)?[qk]\.weight$": "a control LoRA of FLUX, which also replaces norms and the input layer",
    r"\.(diff|diff_b|set_weight)$": "differences of whole weights (ComfyUI)",
    r"lora_unet_joint_blocks": "kohya's names of Stable Diffusion 3",
    r"lora_unet_(down|mid|up|input|middle|output)_blocks?|^unet\.": "a LoRA of Stable Diffusion 1, 2 or XL",
}

Pair = dict[str, Tensor]  # "A" (r, in), "B" (out, r), and where the file has them "bias" (out,) and "alpha" ()


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

    Keys are `transformer.<module>.lora_A.weight`, `...lora_B.weight` and, where the file has one, `...lora_B.bias`. Settings are
    those of the file, or None where it has none and scaling is 1: an alpha that differs from the rank is multiplied into B. Raises
    `DataError` for text-encoder weights, keys that are not LoRA keys, layers that the transformer does not have, shapes that do not
    fit, incomplete pairs, and layouts that diffusers does not read, by their name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = lora_file(path)
    described = _describe(file)
    try:
        stored = load_file(file, device="cpu")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: cannot be read ({_first_line(error)}); get it again") from error
    if text := [key for key in stored if key.startswith(_TEXT_PREFIXES)]:
        raise DataError(
            f"{file}: {len(text)} keys are for a text encoder ({_some(text)}), which load_lora does not load; "
            "use a file for the transformer only, or pipe.load_lora_weights"
        )
    settings = {key: value for key, value in described.items() if key.startswith("transformer.")}
    if any(key.endswith(".alpha") for key in stored):
        settings = {}
    layers = _layers(transformer)
    resolved = _resolved(stored, layers, transformer, file)
    for name, pair in resolved.items():
        _require_fit(name, pair, layers[name], file)
    keys = {"A": "lora_A.weight", "B": "lora_B.weight", "bias": "lora_B.bias"}
    weights = {
        f"transformer.{name}.{keys[half]}": half_of for name, pair in resolved.items() for half, half_of in pair.items()
    }
    return weights, settings or None


def _resolved(
    stored: Mapping[str, Tensor], layers: Mapping[str, Any], transformer: nn.Module, file: Path
) -> dict[str, Pair]:
    """Return the file's pairs by the transformer's layers, alpha / r multiplied into B and its bias."""
    reader = family_of(transformer).lora_reader
    resolved: dict[str, Pair] = {}
    unknown = [key for key in stored if not _KEY.match(key)]
    if unknown or not stored:
        problem = f"{len(unknown)} keys are not LoRA keys ({_some(unknown) or 'the file is empty'})"
        # Without its magnitudes, which diffusers leaves out, a DoRA is another change of the weights.
        dora = any("dora_scale" in key for key in stored)
        attempts: Iterable[Mapping[str, Tensor]] = [] if dora else [stored]
    else:
        pairs = {name: _scaled(pair) for name, pair in _pairs(stored, file).items()}
        for name in list(pairs):
            layer = _own_layer(name, layers)
            if layer in resolved:
                raise DataError(f"{file}: has {layer} twice, once as {name}; keep one")
            if layer is not None:
                resolved[layer] = pairs.pop(name)
        if not pairs:
            return resolved
        whole = len(pairs) + len(resolved)
        problem = f"{len(pairs)} of {whole} layers are not in {type(transformer).__name__} ({_some(list(pairs))})"
        attempts = (_named(pairs, name_of) for name_of in (str, _kohyas_name))
    for attempt in attempts:
        converted = read_by_diffusers(attempt, reader, layers)
        if converted is not None:
            found = _pairs(converted, file)
            if twice := found.keys() & resolved.keys():
                raise DataError(f"{file}: has {sorted(twice)[0]} twice; keep one")
            return resolved | found
    layout = next((name for part, name in _OTHER_LAYOUTS.items() if any(re.search(part, key) for key in stored)), None)
    raise DataError(f"{file}: {problem}; it is {layout or 'a LoRA for another model, or of an unknown layout'}")


def _own_layer(name: str, layers: Iterable[str]) -> str | None:
    """Return the transformer's layer of a name in the file: the module's name, or that with _ for its dots."""
    bare = _bare(name)
    if bare in layers:
        return bare
    flat = [layer for layer in layers if layer.replace(".", "_") == bare]
    return flat[0] if len(flat) == 1 else None


def _bare(name: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _kohyas_name(name: str) -> str:
    """Return the name that kohya gives to a layer of a model's own code; diffusers' reader of FLUX knows these best."""
    return "lora_unet_" + _bare(name).replace(".", "_")


def _named(pairs: Mapping[str, Pair], name_of: Callable[[str], str]) -> dict[str, Tensor]:
    ways = {"A": "lora_down.weight", "B": "lora_up.weight", "bias": "lora_B.bias"}
    return {f"{name_of(name)}.{ways[half]}": tensor for name, pair in pairs.items() for half, tensor in pair.items()}


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
    """Group tensors by layer, in the file's names."""
    pairs: dict[str, Pair] = {}
    for key, tensor in sorted(stored.items()):
        match = _KEY.match(key)
        if match is None:
            raise DataError(f"{file}: {key} is not a LoRA key")
        half = _HALVES[match["half"].replace(".default", "")]
        if half in pairs.setdefault(match["layer"], {}):
            raise DataError(f"{file}: {key} has the same layer and half as another key; keep one")
        pairs[match["layer"]][half] = tensor
    for layer, pair in pairs.items():
        if not {"A", "B"} <= pair.keys() or pair["A"].ndim != 2 or pair["B"].ndim != 2:
            raise DataError(
                f"{file}: {layer} needs two matrices, down (A) and up (B); the file is cut or of another kind"
            )
        if pair["A"].shape[0] != pair["B"].shape[1] or pair.get("alpha", torch.zeros(())).numel() != 1:
            raise DataError(f"{file}: {layer} has A {tuple(pair['A'].shape)}, B {tuple(pair['B'].shape)}: ranks differ")
    return pairs


def _scaled(pair: Pair) -> Pair:
    """Return the pair with alpha / r multiplied into B and its bias, and without alpha."""
    scale = float(pair["alpha"]) / len(pair["A"]) if "alpha" in pair else 1.0
    scaled = {"A": pair["A"]} | {half: pair[half] for half in ("B", "bias") if half in pair}
    return scaled if scale == 1.0 else {h: t if h == "A" else t.float() * scale for h, t in scaled.items()}


def _layers(transformer: nn.Module) -> dict[str, Any]:
    """Return the linear layers by name, with or without an adapter."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def _require_fit(name: str, pair: Pair, layer: Any, file: Path) -> None:
    wanted = (layer.in_features, layer.out_features)
    found = (pair["A"].shape[1], len(pair["B"]))
    if wanted != found:
        raise DataError(
            f"{file}: {name} maps {found[0]} to {found[1]} channels, this transformer's maps {wanted[0]} to {wanted[1]}; "
            "it is a LoRA for another model"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
