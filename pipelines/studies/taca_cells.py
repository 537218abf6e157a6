"""The measurements of the TACA study: train a LoRA, or generate pictures and score them with the probe.

The stages' own functions, with the same streams of noise: at the seed of params.yaml, an arm's cell gives the results of the stages
`taca_generate` and `taca_evaluate`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from components.errors import DataError
from components.evaluation.alignment import score_alignment
from components.evaluation.probe.model import AttributeProbe
from components.persons.drawn.rewording import noun_first
from components.persons.prompts import DatasetPrompt, dataset_prompts
from components.persons.shards import PersonDataset
from components.taca.config import TacaConfig
from components.taca.conventions import image_tokens
from components.taca.generation import Arm, active_steps, apply_arm, generate, schedule_for_pictures
from components.taca.reference import DTYPES, load_base, write_reference
from components.taca.schedule import TemperatureSchedule
from components.training.randomness import stream_seed
from pipelines.stages import taca_cache, taca_train
from pipelines.studies.cells import Cell, CellContext

SCHEDULE_FIELDS = tuple(field.name for field in fields(TacaConfig))


@dataclass(frozen=True)
class Loaded:
    """The models and data that every generation uses."""

    pipe: Any
    probe: AttributeProbe
    people: PersonDataset


def cache(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Encode training pictures and captions as the stage `taca_cache` does, with the published base."""
    inputs = {**context.inputs, "base": base_of(context)}
    return taca_cache.run(
        context.params(), inputs, {"cache": context.files / "cache"}, context.training_context(seed=0)
    )


def train(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Train a LoRA as the stage `taca_train` does, with the cell's seed."""
    training = context.training_context(cell.settings["seed"], cell.settings["arm"])
    encoded = [folder / "cache" for folder in context.needs.values()]
    inputs = {"base": base_of(context), "cache": encoded[0] if encoded else context.inputs["cache"]}
    return taca_train.run(
        context.params(seed=cell.settings["seed"]), inputs, {"adapter": context.files / "adapter"}, training
    )


def draw(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Generate pictures for the first `prompts` evaluation prompts and score their alignment with the probe.

    "shown" is the percentage of each prompt's attributes that its picture shows (None for a prompt without attributes),
    "prompt_ids" the prompts, "alignment" the mean. With the setting `words`, prompts state the same in another order of words.
    """
    settings, params = cell.settings, context.params()
    loaded = context.shared("loaded", lambda: _load(context))
    height, width = (settings.get(name, getattr(params.pictures, name)) for name in ("height", "width"))
    steps = params.taca_generate.steps
    chosen_at = image_tokens(loaded.pipe, params.pictures.height, params.pictures.width)
    schedule = _schedule(settings, loaded.pipe, height, width, steps, chosen_at)
    adapters = tuple(folder / "adapter" for folder in context.needs.values())
    asked = dataset_prompts(loaded.people, "test", settings["prompts"])
    reworded = noun_first if settings.get("words") == "noun-first" else str
    with apply_arm(loaded.pipe, Arm(adapters, schedule)):
        pictures = generate(
            loaded.pipe,
            [reworded(prompt.text) for prompt in asked],
            [stream_seed(settings["seed"], "picture", prompt.caption_id) for prompt in asked],
            height=height,
            width=width,
            steps=steps,
            guidance=settings["guidance"],
            batch_size=params.taca_generate.batch,
        )
    active = active_steps(loaded.pipe, schedule, height=height, width=width, steps=steps) if schedule else 0
    return {
        **_alignment(loaded.probe, pictures, asked),
        "steps": steps,
        "active_steps": active,
        "sigma": schedule.threshold if schedule else None,
    }


def base_of(context: CellContext) -> Path:
    """Return the description of the base: that of the workspace, or one written for a published folder."""
    if "base" in context.inputs:
        return context.inputs["base"]
    described = context.folder / "base.json"
    write_reference(context.inputs["base_weights"], described)
    return described


def _load(context: CellContext) -> Loaded:
    dtype = DTYPES[context.params().taca_generate.base_dtype]
    pipe = load_base(base_of(context), dtype=dtype).to(context.device)
    probe = AttributeProbe.load(context.inputs["probe"])
    return Loaded(pipe, probe, PersonDataset(context.inputs["people"]))


def _schedule(
    settings: Mapping[str, Any], pipe: Any, height: int, width: int, steps: int, chosen_at: int
) -> TemperatureSchedule | None:
    """Return the schedule of the settings for this model and size; None without one.

    Where the settings say `carried`, the threshold was chosen at `chosen_at` image tokens and follows the resolution.
    """
    chosen = {name: settings[name] for name in SCHEDULE_FIELDS if name in settings}
    if not chosen:
        return None
    if settings.get("carried"):
        chosen["threshold"] = {"sigma": chosen["threshold"], "tokens": chosen_at}
    return schedule_for_pictures(pipe, TacaConfig(**chosen), height=height, width=width, steps=steps)


def _alignment(probe: AttributeProbe, pictures: Tensor, asked: list[DatasetPrompt]) -> dict[str, Any]:
    shown = 100 * score_alignment(probe, pictures, [prompt.attributes for prompt in asked]).per_picture()
    known = [value for value in shown.tolist() if not math.isnan(value)]
    if not known:
        raise DataError("no prompt states an attribute that the probe knows: alignment cannot be judged")
    return {
        "alignment": sum(known) / len(known),
        "shown": [None if math.isnan(value) else value for value in shown.tolist()],
        "prompt_ids": [prompt.caption_id for prompt in asked],
    }
