"""Which model a run would adapt, from configuration files alone: what can be known before any weights are there."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from components.errors import DataError, ParameterError
from components.taca.conventions import FLUX, SD3, Conventions, image_tokens, latent_shape, text_length
from components.taca.footprint import skeleton
from pipelines.params import Parameters

FOLDER = "presets/architectures"

# By the transformer's class: its pipeline, and the text tokens that this puts in front of those it counts.
_PIPELINES: dict[str, tuple[Conventions, int]] = {
    "FluxTransformer2DModel": (FLUX, 0),
    "SD3Transformer2DModel": (SD3, 77),  # CLIP's, then T5's
}


@dataclass(frozen=True)
class Architecture:
    """The shape of a text-to-image model.

    config: the transformer's config.json. pipe: a pipeline of its class, with a scheduler and a transformer that has shapes but no
    weights; it can say what a real one would do, and cannot draw. text_tokens: of the sequence that the transformer sees.
    """

    origin: str
    config: Mapping[str, Any]
    pipe: Any
    text_tokens: int

    def image_tokens(self, height: int, width: int) -> int:
        """How many tokens a picture is to the transformer. Raises ParameterError for a size that does not divide."""
        latent_shape(self.pipe, height, width)  # refuses a size that does not divide
        return image_tokens(self.pipe, height, width)


def find(params: Parameters, root: Path, file: Path | None = None) -> Architecture:
    """The architecture of `base_model.source`: from `file`, from that of a preset with the same source, or the small model's.

    Raises ParameterError when nothing says what the source looks like, DataError for a file that is not a config.json.
    """
    source = params.base_model.source
    if file is not None:
        return read(file)
    if source == "tiny":
        return _tiny(params)
    for preset in sorted((root / "presets").glob("*.yaml")):
        values = yaml.safe_load(preset.read_text(encoding="utf-8")) or {}
        known = root / FOLDER / f"{preset.stem}.json"
        if (values.get("base_model") or {}).get("source") == source and known.is_file():
            return read(known)
    raise ParameterError(f"base_model.source = {source}: its architecture is not in {FOLDER}; give --architecture FILE")


def read(file: Path) -> Architecture:
    """From a transformer's config.json, with the scheduler's beside it (`<name>-scheduler.json`) or where a pipeline's folder has
    it (`../scheduler/scheduler_config.json`). The VAE is taken to be that of the published models, which divides by 8."""
    import diffusers

    config = _json(file)
    name = str(config.get("_class_name"))
    if name not in _PIPELINES:
        raise ParameterError(f"{file}: _class_name {name!r}; a dry run knows {', '.join(_PIPELINES)}")
    beside = file.with_name(f"{file.stem}-scheduler.json")
    of_scheduler = _json(beside if beside.is_file() else file.parent.parent / "scheduler" / "scheduler_config.json")
    conventions, before = _PIPELINES[name]
    parts: dict[str, Any] = dict.fromkeys(conventions.parts)
    parts["transformer"] = skeleton(config, torch.float32)
    parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler.from_config(of_scheduler)
    pipe = getattr(diffusers, conventions.pipeline)(**parts)
    return Architecture(file.name, config, pipe, before + text_length(pipe))


def _tiny(params: Parameters) -> Architecture:
    """The small model, built: it is cheaper to make than to describe twice."""
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
