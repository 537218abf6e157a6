"""The model that a run would adapt, built from configuration files without weights."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from components.errors import DataError, ParameterError
from components.taca.conventions import image_tokens, latent_shape, text_length
from components.taca.families import Conventions
from components.taca.footprint import skeleton
from components.taca.registry import FAMILIES
from pipelines.params import Parameters
from pipelines.schema.reading import read_yaml

FOLDER = "presets/architectures"


@dataclass(frozen=True)
class Architecture:
    """The shape of a text-to-image model.

    config: the transformer's config.json. pipe: a pipeline of its class, with a scheduler and a transformer without weights;
    it cannot draw. text_tokens: the number in the transformer's sequence.
    """

    origin: str
    config: Mapping[str, Any]
    pipe: Any
    text_tokens: int

    def image_tokens(self, height: int, width: int) -> int:
        """Return the number of image tokens of a picture. Raises ParameterError for a size that does not divide."""
        latent_shape(self.pipe, height, width)  # refuses a size that does not divide
        return image_tokens(self.pipe, height, width)


def find(params: Parameters, root: Path, file: Path | None = None) -> Architecture:
    """Return the architecture of `base_model.source`: of `file`, of a preset with the same source, or of the small model.

    Raises ParameterError if none of these has it, DataError for a file that is not a config.json.
    """
    source = params.base_model.source
    if file is not None:
        return read(file)
    if source == "tiny":
        return _tiny(params)
    if params.base_model.folder is not None and (root / source / "transformer" / "config.json").is_file():
        return read(root / source / "transformer" / "config.json")
    for preset in sorted((root / "presets").glob("*.yaml")):
        values = read_yaml(preset) or {}
        known = root / FOLDER / f"{preset.stem}.json"
        if (values.get("base_model") or {}).get("source") == source and known.is_file():
            return read(known)
    raise ParameterError(f"base_model.source = {source}: its architecture is not in {FOLDER}; give --architecture FILE")


def read(file: Path) -> Architecture:
    """Read a transformer's config.json, with the scheduler's beside it (`<name>-scheduler.json`) or in the pipeline's folder
    (`../scheduler/scheduler_config.json`), whose VAE and tokenizer count too. Without them the VAE divides by 8 and the text has
    the family's length, as in the published models."""
    import diffusers

    config = _json(file)
    name = str(config.get("_class_name"))
    known = {cls: family.conventions for cls, family in FAMILIES.items() if family.conventions}
    if name not in known:
        raise ParameterError(f"{file}: _class_name {name!r}; a dry run supports {', '.join(known)}")
    beside = file.with_name(f"{file.stem}-scheduler.json")
    scheduler_config = _json(beside if beside.is_file() else file.parent.parent / "scheduler" / "scheduler_config.json")
    conventions = known[name]
    parts: dict[str, Any] = dict.fromkeys(conventions.parts)
    parts["transformer"] = skeleton(config, torch.float32)
    sampler = getattr(diffusers, str(scheduler_config.get("_class_name", "FlowMatchEulerDiscreteScheduler")), None)
    if sampler is None:
        raise DataError(f"{file}: diffusers has no scheduler {scheduler_config['_class_name']} (_class_name)")
    parts["scheduler"] = sampler.from_config(scheduler_config)
    pipe = getattr(diffusers, conventions.pipeline)(**parts | _other_parts(file.parent.parent, conventions))
    return Architecture(file.name, config, pipe, conventions.prepended_text_tokens + text_length(pipe))


def _other_parts(folder: Path, conventions: Conventions) -> dict[str, Any]:
    """Return what decides the number of tokens, where a pipeline's folder has it: the VAE, without weights, and the tokenizer."""
    import diffusers
    from transformers import AutoTokenizer

    found: dict[str, Any] = {}
    if (folder / "vae" / "config.json").is_file():
        config = _json(folder / "vae" / "config.json")
        with torch.device("meta"):
            found["vae"] = getattr(diffusers, str(config.get("_class_name"))).from_config(config)
    tokenizer = folder / conventions.length_tokenizer
    if (tokenizer / "tokenizer_config.json").is_file():
        found[conventions.length_tokenizer] = AutoTokenizer.from_pretrained(tokenizer)
    return found


def _tiny(params: Parameters) -> Architecture:
    """Build the small model."""
    from components.taca.toy.config import TinyConfig
    from components.taca.toy.pipeline import build_tiny_pipeline

    config = TinyConfig(**asdict(params.base_model.tiny))
    pipe = build_tiny_pipeline(config, ("word",), params.seed)
    return Architecture("base_model.tiny", json.loads(pipe.transformer.to_json_string()), pipe, config.text_tokens)


def _json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from error
    if not isinstance(document, dict):
        raise DataError(f"{file}: must hold an object, as a model's config.json does")
    return document
