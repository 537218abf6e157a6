"""Architectures of the dual encoder: open_clip configs of a CLIP with a vision transformer and a causal text transformer.

Other models of open_clip are refused by what they have: a ResNet, a tower of timm or transformers, SigLIP's or CoCa's parts.
"""

import difflib
import inspect
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from components.errors import ParameterError
from components.gadms.tokenizer import CONTEXT_LENGTH, CaptionTokenizer
from components.persons.transforms import CLIP_MEAN, CLIP_STD

_PARTS = ("embed_dim", "vision_cfg", "text_cfg")
_OPTIONS = ("quick_gelu", "init_logit_scale", "nonscalar_logit_scale")
_DECIDED_ELSEWHERE = ("vision_cfg.image_size", "text_cfg.vocab_size", "text_cfg.context_length")
"""Keys that a model folder need not have as asked for: the pictures and its own vocabulary decide."""
_ATTENTION = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn")
"""Keys of text_cfg that change attention, which the scores of tokens repeat for the end token (`scores/gradient.py`)."""
_NEEDED = "a CLIP with a vision transformer and CLIP's own text transformer is needed"


def model_config(config: Mapping[str, Any] | str, image_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Copy an open_clip config (inline, by name, or in a JSON file), with the image size as [height, width].

    Raises ParameterError for a config that is not of a CLIP that is trained here.
    """
    name, found = _found(config)
    missing = set(_PARTS) - set(found)
    if missing:
        raise ParameterError(f"{name}: {', '.join(sorted(missing))} missing; an open_clip model config is needed")
    copied: dict[str, Any] = deepcopy(dict(found))
    if not copied.get("custom_text"):
        copied.pop("custom_text", None)
    other = _other_kind(copied)
    if other:
        raise ParameterError(f"{name}: {other}; {_NEEDED}, such as ViT-B-16-quickgelu")
    _require_known_keys(name, copied)
    vision = copied["vision_cfg"]
    size, patch = image_size or vision.get("image_size", 224), vision.setdefault("patch_size", 16)
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(_is_count(side) for side in (*sides, patch)):
        raise ParameterError(
            f"{name}: image_size {size} and patch_size {patch}: [height, width] and a number are needed"
        )
    if any(side % patch for side in sides):
        raise ParameterError(f"image size {list(sides)}: not a multiple of the patch size {patch}")
    vision["image_size"] = list(sides)
    return copied


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def grid_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of patches of a config that `model_config` returned."""
    height, width = config["vision_cfg"]["image_size"]
    patch = config["vision_cfg"]["patch_size"]
    return height // patch, width // patch


def context_length_of(config: Mapping[str, Any]) -> int:
    """Tokens of a text, start and end included, of a config that `model_config` returned."""
    length: int = config["text_cfg"].get("context_length", CONTEXT_LENGTH)
    return length


def build(config: Mapping[str, Any]) -> Any:
    """Build the open_clip model of a config, with random weights. Raises ParameterError for values that cannot be built."""
    from open_clip.model import CLIP

    try:
        return CLIP(**deepcopy(dict(config)))
    except Exception as error:  # torch and open_clip raise many kinds for widths, heads and layers that do not fit
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ParameterError(f"model config: cannot be built ({type(error).__name__}: {reason})") from error


def require_towers(clip: Any, tokenizer: CaptionTokenizer, text: Mapping[str, Any]) -> None:
    """Refuse models without a class token or a plain causal text tower, or with another vocabulary. `text`: their text_cfg."""
    visual = clip.visual
    if not hasattr(visual, "_embeds") or visual.attn_pool is not None or visual.pool_type != "tok":
        raise ParameterError(
            "vision_cfg: a vision transformer with a class token (pool_type 'tok', no attention pool) is needed"
        )
    if clip.attn_mask is None:
        raise ParameterError("text_cfg: a causal text tower is needed (no_causal_mask must be false)")
    changed = [key for key in _ATTENTION if text.get(key)]
    if clip.text_projection is None:
        changed.append("proj_type 'none'")
    if changed:
        raise ParameterError(
            f"text_cfg: {', '.join(changed)}: leave out; scores of tokens need CLIP's attention and projection"
        )
    if (clip.vocab_size, clip.context_length) != (tokenizer.vocab_size, tokenizer.context_length):
        raise ParameterError(
            f"text_cfg: vocab_size {clip.vocab_size} and context_length {clip.context_length} differ from "
            f"the tokenizer's {tokenizer.vocab_size} and {tokenizer.context_length}"
        )


def require_architecture(asked: Mapping[str, Any], own: Mapping[str, Any], folder: str) -> None:
    """Refuse an architecture that is not that of a model folder, which would be trained in its place.

    Both are configs that `model_config` returned. A key that is left out has open_clip's default.
    """
    ours, theirs = _values(asked), _values(own)
    keys = [key for key in sorted({*ours, *theirs} - {*_DECIDED_ELSEWHERE}) if ours.get(key) != theirs.get(key)]
    if keys:
        differences = ", ".join(f"{key} is {ours.get(key)} (the folder's: {theirs.get(key)})" for key in keys)
        raise ParameterError(
            f"retrieval.architecture: not that of the model folder {folder}: {differences}; set the folder's, or "
            "retrieval.pretrained to null to train a new model of this architecture"
        )


def _values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config by their dotted keys, with open_clip's defaults."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    options = inspect.signature(CLIP.__init__).parameters
    found = {key: config.get(key, options[key].default) for key in ("embed_dim", *_OPTIONS)}
    for section, defaults in (("vision_cfg", CLIPVisionCfg()), ("text_cfg", CLIPTextCfg())):
        values = {**asdict(defaults), **config[section]}
        found |= {f"{section}.{key}": value for key, value in values.items()}
    return found


def require_tag(name: str, config: Mapping[str, Any], tag: str) -> None:
    """Refuse a published tag that was trained with another activation than the architecture's, or with other pixels than CLIP's."""
    import open_clip

    require_activation(name, config, tag)
    require_normalisation(open_clip.get_pretrained_cfg(name, tag) or {}, f"weights {tag} for {name}")


def require_normalisation(preprocess: Mapping[str, Any], weights: str) -> None:
    """Refuse weights that were trained on pixels of another mean or deviation than CLIP's, which every picture has here."""
    for key, clip in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
        found = preprocess.get(key)
        if found is not None and found not in (clip, list(clip)):
            raise ParameterError(
                f"{weights}: trained on pixels with {key} {found}; use weights with CLIP's {clip} (search takes any)"
            )


def require_activation(name: str, config: Mapping[str, Any], tag: str) -> None:
    """Refuse a published tag whose activation is not the architecture's. (The activation of a file is unknown.)"""
    import open_clip

    published = open_clip.get_pretrained_cfg(name, tag)
    if not published:
        return
    theirs, ours = bool(published.get("quick_gelu")), bool(config.get("quick_gelu"))
    if theirs != ours:
        other = f"{name}-quickgelu" if theirs else name.removesuffix("-quickgelu")
        raise ParameterError(f"weights {tag} for {name}: trained with another activation; use {other}")


def _found(config: Mapping[str, Any] | str) -> tuple[str, Mapping[str, Any]]:
    """What a message calls the config, and its content."""
    if not isinstance(config, str):
        return "model config", config
    if config.endswith(".json"):
        return config, config_file(Path(config))
    import open_clip

    names = open_clip.list_models()
    found = open_clip.get_model_config(config) if config in names else None
    if found is None:
        close = difflib.get_close_matches(config.lower(), [name.lower() for name in names], n=1)
        hint = next((f" (did you mean {name}?)" for name in names if [name.lower()] == close), "")
        raise ParameterError(
            f"model {config!r}: unknown to open_clip{hint}; open_clip.list_models() names all, or give a config"
        )
    return f"model {config}", found


def config_file(file: Path) -> Mapping[str, Any]:
    """Read a model config, or the `model_cfg` of an open_clip_config.json. Raises ParameterError for another file."""
    content = _content(file)
    found = content.get("model_cfg", content)
    if not isinstance(found, dict):
        raise ParameterError(f"{file}: its model_cfg is not an object")
    return found


def preprocess_of(file: Path) -> Mapping[str, Any]:
    """Read how pictures are prepared, the `preprocess_cfg` of an open_clip_config.json; {} where it does not say."""
    found = _content(file).get("preprocess_cfg")
    return found if isinstance(found, dict) else {}


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParameterError(f"{file}: not a readable JSON model config ({error})") from error
    if not isinstance(content, dict):
        raise ParameterError(f"{file}: must hold an open_clip model config, an object")
    return content


def _other_kind(config: Mapping[str, Any]) -> str | None:
    """What makes this another model than a plain CLIP, None for a plain CLIP."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if not isinstance(vision, Mapping) or not isinstance(text, Mapping):
        return "vision_cfg and text_cfg must be objects"
    tokenizer = text.get("hf_tokenizer_name") or text.get("tokenizer_kwargs") or text.get("tokenizer_mode")
    kinds = {
        "it has CoCa's text decoder (multimodal_cfg)": config.get("multimodal_cfg"),
        f"its image tower is timm's {vision.get('timm_model_name')}": vision.get("timm_model_name"),
        "its image tower is a ResNet": isinstance(vision.get("layers"), list | tuple),
        f"its text tower is transformers' {text.get('hf_model_name')}": text.get("hf_model_name"),
        f"its tokenizer is another than CLIP's ({tokenizer})": tokenizer,
        "its text tower is a module of its own (custom_text)": config.get("custom_text"),
        "it has the bias of SigLIP's loss (init_logit_bias)": config.get("init_logit_bias") is not None,
        f"its text feature is not read at the end token (pool_type {text.get('pool_type')})": (
            text.get("pool_type", "argmax") != "argmax"
        ),
        "its text has a class token (embed_cls)": text.get("embed_cls"),
    }
    return next((kind for kind, applies in kinds.items() if applies), None)


def _require_known_keys(name: str, config: Mapping[str, Any]) -> None:
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    known = {
        "": (config, [*_PARTS, *_OPTIONS]),
        "vision_cfg.": (config["vision_cfg"], [field.name for field in fields(CLIPVisionCfg)]),
        "text_cfg.": (config["text_cfg"], [field.name for field in fields(CLIPTextCfg)]),
    }
    for section, (values, keys) in known.items():
        for key in values:
            if key not in keys:
                close = difflib.get_close_matches(str(key), keys, n=1)
                hint = f", did you mean {close[0]}?" if close else ""
                raise ParameterError(f"{name}: {section}{key} is unknown to open_clip{hint}")
