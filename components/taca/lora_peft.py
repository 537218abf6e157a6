"""The strength of a LoRA that PEFT itself saved (`PeftModel.save_pretrained`): it is in the file beside the weights."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.errors import DataError
from components.taca.lora_pairs import KEY

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
"""Begins the names of PEFT's own files. Those of fal's trainer begin so too; they come without settings, and alpha is the rank."""


def with_peft_alphas(stored: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Return the tensors with `<name>.alpha` for each pair in PEFT's names, as the `adapter_config.json` beside `file` states it.

    Other files, and one without settings beside it, come back as they are. Of rsLoRA, whose scale is alpha / sqrt(r), the alpha is
    that of a LoRA of the same strength. Raises `DataError` for settings that cannot be read, or are not of a LoRA.
    """
    config_file = file.with_name(CONFIG)
    ranks = {
        match["layer"]: len(tensor)
        for key, tensor in stored.items()
        if key.startswith(PREFIX) and (match := KEY.match(key)) and match["half"].startswith("lora_A")
    }
    if not ranks or not config_file.is_file():
        return dict(stored)
    alphas = _alphas(_settings(config_file), ranks, config_file)
    return {**stored, **{f"{name}.alpha": torch.tensor(alpha) for name, alpha in alphas.items()}}


def _alphas(settings: Mapping[str, Any], ranks: Mapping[str, int], file: Path) -> dict[str, float]:
    from peft.utils.other import get_pattern_key

    own = settings.get("alpha_pattern") or {}
    alphas = {}
    for name, rank in ranks.items():
        alpha = own.get(get_pattern_key(own, name.removeprefix(PREFIX)), settings.get("lora_alpha"))
        if not isinstance(alpha, (int, float)):
            raise DataError(
                f"{file}: lora_alpha is {alpha!r}: must be a number, which is the strength of the LoRA beside it"
            )
        alphas[name] = alpha * math.sqrt(rank) if settings.get("use_rslora") else float(alpha)
    return alphas


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); it states the strength of the LoRA beside it") from error
    if not isinstance(settings, dict) or settings.get("peft_type", "LORA") != "LORA":
        raise DataError(f"{file}: not the settings of a LoRA")
    return settings
