"""Read LoRA files in the layouts in use, for one transformer and the text encoders of its pipeline.

A LoRA is a pair of matrices per layer, W' = W + alpha / r B A, with A (r, in) and B (out, r). Files differ in the names:

    transformer.<module>.lora_A.weight, lora_B.weight                     diffusers; ldiex/TACA
    base_model.model.<module>.lora_A.weight, lora_B.weight                PEFT, with its settings beside the file (lora_peft.py)
    diffusion_model.<module>.lora_A.weight, or lora_down, lora_up         ai-toolkit, ComfyUI; with or without .alpha
    lora_transformer_<module with _ for .>.lora_down.weight, .alpha       ai-toolkit's kohya-like layout
    lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight, .alpha       kohya, in the names of FLUX's own code, q, k and v fused
    double_blocks.0.processor.qkv_lora1.down.weight                       XLabs
    transformer.<module>.lora.down.weight, <module>_lora.down.weight      diffusers before it used PEFT

<module> is looked up among the transformer's own layers; every other layout goes, the whole file at once, through the reader of
diffusers' pipeline (lora_readers.py). Keys for text encoders are read by text_lora.py. Every key must be half of a pair, its bias,
alpha or magnitude (DoRA), for a layer that exists and fits: what diffusers would ignore is an error here, unless it is zero.

Control LoRAs of FLUX also replace norms of the attention, and widen the input layer for a control image.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from components.errors import DataError, ParameterError
from components.taca.lora_pairs import KEY, NAMES, Pair, linear_layers, named, pairs_of, require_fit, scaled, some
from components.taca.lora_peft import PREFIX as PEFT_PREFIX
from components.taca.lora_peft import with_peft_alphas
from components.taca.lora_readers import loader_of, read_by_diffusers
from components.taca.registry import family_of
from components.taca.text_lora import PREFIXES as TEXT_PREFIXES
from components.taca.text_lora import read_text_parts

WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name: a folder loads without naming the file
METADATA_KEY = "lora_adapter_metadata"  # diffusers' key
SETTINGS_PREFIX = "taca."  # diffusers reads "transformer.*" and "text_encoder*.*" under its key and ignores the rest

_PREFIXES = ("transformer.", "diffusion_model.", PEFT_PREFIX, "lora_transformer_", "lora_unet_")
_INPUT_LAYER = "x_embedder"
_CONTROL_PIPELINES = ("FluxControlPipeline", "FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline")

# Adapters of other kinds, and LoRAs in names that diffusers has no reader for, by a part of their keys.
_OTHER_LAYOUTS = {
    r"dora_scale": "a DoRA in LyCORIS' names, of which diffusers leaves the magnitudes out",
    r"\.hada_w": "a LoHa (LyCORIS)",
    r"\.lokr_w": "a LoKr (LyCORIS)",
    r"\.oft_|oft_blocks|oft_R": "an OFT adapter",
    r"\.ia3_|on_input$": "an (IA)3 adapter",
    r"query_norm\.scale|\.norm_(added_)?[qk]\.weight$": "a control LoRA of FLUX for another model, or cut",
    r"\.(diff|diff_b|set_weight)$": "differences of whole weights (ComfyUI)",
    r"lora_unet_joint_blocks": "kohya's names of Stable Diffusion 3",
    r"lora_unet_(down|mid|up|input|middle|output)_blocks?|^unet\.": "a LoRA of Stable Diffusion 1, 2 or XL",
}


@dataclass(frozen=True)
class LoraFile:
    """What a file holds.

    transformer: `transformer.<module>.lora_A.weight`, ...: keys for diffusers' `load_lora_adapter(..., prefix="transformer")`.
    text: the same of each text encoder, by its name. settings: PEFT's, under `<part>.`; empty where the file has none, or an alpha,
    which is multiplied into B. whole: replaces norms or widens the input layer, as only the loader of the whole pipeline can.
    """

    file: Path
    transformer: dict[str, Tensor]
    text: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    whole: bool = False

    def settings_of(self, part: str) -> dict[str, Any] | None:
        """The settings of one part; None if the file has none for it, where alpha is the rank."""
        return {key: value for key, value in self.settings.items() if key.startswith(f"{part}.")} or None


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


def read_lora(path: Path, transformer: nn.Module, pipe: Any = None) -> LoraFile:
    """Read a file for a transformer and, if the pipeline is given, its text encoders.

    Raises `DataError` for keys that are not LoRA keys, layers that the models do not have, shapes that do not fit, incomplete
    pairs, and layouts that diffusers does not read, by their name; `ParameterError` for parts that the pipeline has no place for.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = lora_file(path)
    described = _describe(file)
    try:
        stored = with_peft_alphas(load_file(file, device="cpu"), file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: cannot be read ({_first_line(error)}); get it again") from error
    text = {key: tensor for key, tensor in stored.items() if key.startswith(TEXT_PREFIXES)}
    if text and pipe is None:
        raise ParameterError(
            f"{file}: {len(text)} keys are for a text encoder ({some(list(text))}), not the transformer; give the pipeline, "
            "load_lora(pipe, ...), or a file for the transformer only"
        )
    settings = {key: value for key, value in described.items() if key.startswith(("transformer.", "text_encoder"))}
    if any(key.endswith(".alpha") for key in stored):
        settings = {}
    reader = family_of(transformer).lora_reader
    halves = read_text_parts(text, pipe, loader_of(reader), file) if text else {}
    rest = {key: tensor for key, tensor in stored.items() if key not in text}
    layers = linear_layers(transformer)
    pairs, norms = _resolved(rest, layers, transformer, file) if rest or not text else ({}, 0)
    if not pairs and not halves:
        raise DataError(f"{file}: all its weights are zero, and for layers that the pipeline does not have")
    wider = _fit_input_layer(pairs, layers)
    if norms or wider:
        _require_place(file, transformer, pipe, wider)
    require_fit({name: pair for name, pair in pairs.items() if name not in wider}, layers, file)
    return LoraFile(file, named("transformer", pairs), halves, settings, whole=bool(norms or wider))


def _resolved(
    stored: Mapping[str, Tensor], layers: Mapping[str, Any], transformer: nn.Module, file: Path
) -> tuple[dict[str, Pair], int]:
    """Return the file's pairs by the transformer's layers, alpha / r multiplied into B and its bias, and the number of norms."""
    reader = family_of(transformer).lora_reader
    resolved: dict[str, Pair] = {}
    unknown = [key for key in stored if not KEY.match(key)]
    if unknown or not stored:
        problem = f"{len(unknown)} keys are not LoRA keys ({some(unknown) or 'the file is empty'})"
        # Without its magnitudes, which diffusers leaves out, a DoRA is another change of the weights.
        dora = any("dora_scale" in key for key in stored)
        attempts: Iterable[Mapping[str, Tensor]] = [] if dora else [stored]
    else:
        pairs = {name: scaled(pair) for name, pair in pairs_of(stored, file).items()}
        for name in list(pairs):
            layer = _own_layer(name, layers)
            if layer in resolved:
                raise DataError(f"{file}: has {layer} twice, once as {name}; keep one")
            if layer is not None:
                resolved[layer] = pairs.pop(name)
        if not pairs:
            return resolved, 0
        whole = len(pairs) + len(resolved)
        problem = f"{len(pairs)} of {whole} layers are not in {type(transformer).__name__} ({some(list(pairs))})"
        attempts = (_named(pairs, name_of) for name_of in (str, _kohyas_name))
    replaced = getattr(loader_of(reader), "_control_lora_supported_norm_keys", ()) if unknown else ()
    norms = {name for name, _ in transformer.named_parameters() if any(part in name for part in replaced)}
    for attempt in attempts:
        converted = read_by_diffusers(attempt, reader, {*layers, *norms})
        if converted is not None:
            found = pairs_of({key: tensor for key, tensor in converted.items() if key not in norms}, file)
            if twice := found.keys() & resolved.keys():
                raise DataError(f"{file}: has {sorted(twice)[0]} twice; keep one")
            return resolved | found, len(norms & converted.keys())
    layout = next((name for part, name in _OTHER_LAYOUTS.items() if any(re.search(part, key) for key in stored)), None)
    raise DataError(f"{file}: {problem}; it is {layout or 'a LoRA for another model, or of an unknown layout'}")


def _fit_input_layer(pairs: dict[str, Pair], layers: Mapping[str, Any]) -> set[str]:
    """Pad the A of a narrower input layer with zeros, as diffusers does; return the layer's name if the file's is wider."""
    pair, layer = pairs.get(_INPUT_LAYER), layers.get(_INPUT_LAYER)
    if pair is None or layer is None or len(pair["B"]) != layer.out_features:
        return set()
    missing = layer.in_features - pair["A"].shape[1]
    if missing > 0:
        pair["A"] = nn.functional.pad(pair["A"], (0, missing))
    return {_INPUT_LAYER} if missing < 0 else set()


def _require_place(file: Path, transformer: nn.Module, pipe: Any, wider: set[str]) -> None:
    """Raise `ParameterError` unless the pipeline can hold a file that replaces norms or widens the input layer."""
    given = type(transformer if pipe is None else pipe).__name__
    if wider and given not in _CONTROL_PIPELINES:
        raise ParameterError(
            f"{file}: a control LoRA of FLUX, which needs a control image that {given} does not take; load it into a "
            "FluxControlPipeline (load_lora(pipe, ...) or pipe.load_lora_weights)"
        )
    if pipe is None:
        raise ParameterError(f"{file}: also replaces norms of the attention; give the pipeline, load_lora(pipe, ...)")


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
    ways = {**NAMES, "A": "lora_down.weight", "B": "lora_up.weight"}
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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
