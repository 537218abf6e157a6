"""The parts of LoRA files that are for the text encoders of a pipeline, loaded as diffusers' own loader of the pipeline does.

    text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight, text_encoder_2. ...          diffusers
    text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight, lora_linear_layer  diffusers before it used PEFT
    lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight, .alpha; lora_te1_              kohya
    text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_down.weight        ComfyUI

A pipeline embeds its prompt once for all steps, so these parts act at every noise level.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from components.errors import DataError, ParameterError
from components.taca.adapters import adapter_layers
from components.taca.lora_pairs import Pair, linear_layers, named, pairs_of, require_fit, scaled, some

PREFIXES = ("text_encoder", "lora_te")
_ENCODERS = {
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
}
_BEFORE_PEFT = re.compile(r"\.(to_[qkv]_lora|to_out_lora|lora_linear_layer|lora)\.(down|up)\.weight$")
_CLIPS_LAYER = ".q_proj"  # diffusers takes the rank from layers with CLIP's names, and fails for other encoders


def read_text_parts(stored: Mapping[str, Tensor], pipe: Any, loader: Any, file: Path) -> dict[str, dict[str, Tensor]]:
    """Return the weights of each text encoder by the encoder's name, as `load_into` takes them.

    stored: the keys of the file that start with one of PREFIXES. loader: the class of `diffusers.loaders.lora_pipeline` that reads
    for the pipeline. A pair of which one matrix is zero may be for any layer. Raises `DataError` for layers that the pipeline's
    encoders do not have or that diffusers does not load a LoRA into, and for a DoRA; `ParameterError` if an encoder is not loaded.
    """
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft

    loadable = [part for part in getattr(loader, "_lora_loadable_modules", ()) if part.startswith("text_encoder")]
    old = {key: tensor for key, tensor in stored.items() if _BEFORE_PEFT.search(key)}
    if old:
        stored = {key: tensor for key, tensor in stored.items() if key not in old}
        try:
            stored |= convert_state_dict_to_peft(convert_state_dict_to_diffusers(old))
        except ValueError as error:  # no layer of attention or feed-forward among them
            raise DataError(
                f"{file}: {some(list(old))}: names of a text encoder that diffusers does not read"
            ) from error
    if dora := [key for key in stored if "lora_magnitude_vector" in key or "dora_scale" in key]:
        raise DataError(
            f"{file}: a DoRA for a text encoder ({some(dora)}), whose magnitudes diffusers leaves out; use a file without it"
        )
    found: dict[str, dict[str, Pair]] = {}
    unknown = []
    pairs = pairs_of(stored, file)
    for name, pair in pairs.items():
        part, inner = _split(name)
        encoder = getattr(pipe, part, None) if part in loadable else None
        if part in loadable and encoder is None and _acts(pair):
            raise ParameterError(f"{file}: has a LoRA for the {part} of the pipeline, which is not loaded; load it too")
        layer = _layer(inner, linear_layers(encoder)) if encoder is not None else None
        if layer is not None:
            if layer in found.setdefault(part, {}):
                raise DataError(f"{file}: has {part}.{layer} twice, once as {name}; keep one")
            found[part][layer] = scaled(pair)
        elif _acts(pair):
            unknown.append(name)
    if unknown:
        raise DataError(
            f"{file}: {len(unknown)} of {len(pairs)} text-encoder layers ({some(unknown)}) are none that diffusers loads a LoRA "
            f"into: {_choice(pipe, loadable)}; use a file without them"
        )
    for part, resolved in found.items():
        require_fit(resolved, linear_layers(getattr(pipe, part)), file)
    return {part: named(part, resolved) for part, resolved in found.items()}


def load_into(
    pipe: Any, part: str, weights: Mapping[str, Tensor], settings: dict[str, Any] | None, loader: Any, adapter_name: str
) -> None:
    """Load weights of `read_text_parts` into one text encoder, and check that each found its layer.

    Raises `ValueError` for a layer that the settings (PEFT's, under `<part>.`) leave out, and what PEFT and transformers raise.
    """
    encoder = getattr(pipe, part)
    with without_reports():
        loader.load_lora_into_text_encoder(
            dict(weights),
            network_alphas=None,
            text_encoder=encoder,
            prefix=part,
            adapter_name=adapter_name,
            metadata=settings,
            _pipeline=pipe,
        )
    wanted = {key.removeprefix(f"{part}.").rsplit(".lora_", 1)[0] for key in weights}
    if missing := sorted(wanted - {name for name, _ in adapter_layers(encoder, adapter_name)}):
        raise ValueError(f"they leave out {some(missing)} of {part}")


@contextmanager
def without_reports() -> Iterator[None]:
    """Silence what diffusers and transformers report of a LoRA: all other weights as missing, and each part without a LoRA."""
    names = (
        "transformers.integrations.peft",
        *(f"diffusers.loaders.{x}" for x in ("lora_base", "lora_pipeline", "peft")),
    )
    before = {logging.getLogger(name): logging.getLogger(name).disabled for name in names}
    for logger in before:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in before.items():
            logger.disabled = disabled


def _split(name: str) -> tuple[str, str]:
    """Return the encoder that a name in the file is for, and the name of the layer in it."""
    for prefix, part in _ENCODERS.items():
        if name.startswith(prefix):
            return part, name.removeprefix(prefix)
    part, _, inner = name.partition(".")
    return part, inner


def _layer(inner: str, layers: Mapping[str, Any]) -> str | None:
    """Return the encoder's layer of a name: dotted or with _, with or without transformers' former `text_model.`."""
    if not any(layer.endswith(_CLIPS_LAYER) for layer in layers):
        return None
    flat = inner.replace(".", "_")
    names = {layer.replace(".", "_"): layer for layer in layers}
    return names.get(flat) or names.get(flat.removeprefix("text_model_")) or names.get(f"text_model_{flat}")


def _acts(pair: Pair) -> bool:
    return bool(pair["A"].any() and pair["B"].any())


def _choice(pipe: Any, loadable: list[str]) -> str:
    kinds = {part: type(getattr(pipe, part, None)).__name__ for part in loadable}
    clips = [f"{part} ({kind})" for part, kind in kinds.items() if "CLIP" in kind]
    return f"of {type(pipe).__name__}, {'linear layers of ' + ' and '.join(clips) if clips else 'none'}"
