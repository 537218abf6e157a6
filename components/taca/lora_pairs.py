"""The pairs of matrices of a LoRA file: grouped by layer, scaled by alpha / r, and compared with the layers they are for."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import DataError, ParameterError

Pair = dict[str, Tensor]
"""A "A" (r, in), "B" (out, r), and where the file has them "bias" (out,), "magnitude" (out,) of a DoRA, and "alpha" ()."""

NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "bias": "lora_B.bias", "magnitude": "lora_magnitude_vector"}
"""PEFT's name of each half."""

_HALVES = {
    "lora_A.weight": "A",
    "lora_down.weight": "A",
    "lora_B.weight": "B",
    "lora_up.weight": "B",
    "lora_B.bias": "bias",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "alpha": "alpha",
}
KEY = re.compile(
    r"(?P<layer>.+?)\.(?P<half>(?:lora_A|lora_B|lora_down|lora_up)(?:\.default)?\.weight|lora_B(?:\.default)?\.bias|"
    r"lora_magnitude_vector(?:\.default)?(?:\.weight)?|alpha)$"
)


def pairs_of(stored: Mapping[str, Tensor], file: Path) -> dict[str, Pair]:
    """Group tensors by layer, in the file's names. Raises `DataError` for other keys, and pairs that are not whole."""
    pairs: dict[str, Pair] = {}
    for key, tensor in sorted(stored.items()):
        match = KEY.match(key)
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


def scaled(pair: Pair) -> Pair:
    """Return the pair with alpha / r multiplied into B and its bias, and without alpha."""
    scale = float(pair["alpha"]) / len(pair["A"]) if "alpha" in pair else 1.0
    kept = {half: tensor for half, tensor in pair.items() if half != "alpha"}
    return kept if scale == 1.0 else {h: t.float() * scale if h in ("B", "bias") else t for h, t in kept.items()}


def named(part: str, pairs: Mapping[str, Pair]) -> dict[str, Tensor]:
    """Return the pairs as diffusers' loaders take them: `<part>.<module>.lora_A.weight`, ..."""
    return {f"{part}.{layer}.{NAMES[half]}": tensor for layer, pair in pairs.items() for half, tensor in pair.items()}


def linear_layers(model: nn.Module) -> dict[str, Any]:
    """Return the linear layers by name, with or without an adapter."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def require_fit(pairs: Mapping[str, Pair], layers: Mapping[str, Any], file: Path) -> None:
    """Raise `DataError` for shapes that are not the layers', and for a DoRA that lacks the magnitudes of some layers."""
    for name, pair in pairs.items():
        layer = layers[name]
        wanted = (layer.in_features, layer.out_features)
        found = (pair["A"].shape[1], len(pair["B"]))
        if wanted != found:
            raise DataError(
                f"{file}: {name} maps {found[0]} to {found[1]} channels, this model's maps {wanted[0]} to {wanted[1]}; "
                "it is a LoRA for another model"
            )
    plain = [name for name, pair in pairs.items() if "magnitude" not in pair]
    if plain and len(plain) < len(pairs):
        raise DataError(
            f"{file}: a DoRA without the lora_magnitude_vector of {len(plain)} layers ({some(plain)}); the file is cut"
        )


def require_targets(transformer: nn.Module, targets: Sequence[str]) -> None:
    """Raise ParameterError unless every target is the end of a linear layer's name."""
    names = linear_layers(transformer)
    missing = [end for end in targets if not any(name == end or name.endswith(f".{end}") for name in names)]
    if missing or not targets:
        ends = sorted({name.rsplit(".", 1)[-1] for name in names if not name[-1].isdigit()})
        raise ParameterError(
            f"LoRA targets: {', '.join(map(str, missing)) or 'none given'}: no such linear layer in {type(transformer).__name__}; "
            f"its layers end in {', '.join(ends)}"
        )


def some(names: Sequence[str]) -> str:
    """Return the first names for an error."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
