"""How the cells of the TACA study are measured: a LoRA trained, or pictures drawn and judged by the probe.

The same functions as the stages call, with the same streams of noise: at the seed of params.yaml, an arm's cell gives the
numbers of the stages `taca_generate` and `taca_evaluate`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from components.errors import DataError
from components.evaluation.alignment import score_alignment
from components.evaluation.probe.model import AttributeProbe
from components.persons.prompts import DatasetPrompt, prompts
from components.persons.shards import PersonDataset
from components.taca.config import TacaConfig
from components.taca.generation import Arm, active_steps, apply_arm, generate, schedule_for_pictures
from components.taca.reference import DTYPES, load_base
from components.taca.schedule import TemperatureSchedule
from components.training.randomness import stream_seed
from pipelines.stages import taca_train
from pipelines.studies.cells import Bench, Cell

SCHEDULE_FIELDS = tuple(field.name for field in fields(TacaConfig))


@dataclass(frozen=True)
class Loaded:
    """What every drawing uses."""

    pipe: Any
    probe: AttributeProbe
    people: PersonDataset


def train(cell: Cell, bench: Bench) -> dict[str, Any]:
    """A LoRA, as the stage `taca_train` trains it, with another seed for its start, data order and noise."""
    context = bench.context(cell.settings["seed"], cell.settings["arm"])
    return taca_train.run(
        bench.params(seed=cell.settings["seed"]), bench.inputs, {"adapter": bench.files / "adapter"}, context
    )


def draw(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Pictures for the first `prompts` evaluation prompts, and how much of each prompt the probe sees in them.

    "shown" is the percentage of a prompt's attributes that its picture shows (None where it asks for none), "prompt_ids"
    which prompts those are; "alignment" is the mean.
    """
    settings, params = cell.settings, bench.params()
    loaded = bench.shared("loaded", lambda: _load(bench))
    height, width, steps = params.pictures.height, params.pictures.width, params.taca_generate.steps
    schedule = _schedule(settings, loaded.pipe, height, width)
    adapters = [folder / "adapter" for folder in bench.needs.values()]
    asked = prompts(loaded.people, "test", settings["prompts"])
    with apply_arm(loaded.pipe, Arm(adapter=adapters[0] if adapters else None, schedule=schedule)):
        pictures = generate(
            loaded.pipe,
            [prompt.text for prompt in asked],
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


def _load(bench: Bench) -> Loaded:
    dtype = DTYPES[bench.params().taca_generate.base_dtype]
    pipe = load_base(bench.inputs["base"], dtype=dtype).to(bench.device)
    probe = AttributeProbe.load(bench.inputs["probe"])
    return Loaded(pipe, probe, PersonDataset.open(bench.inputs["people"]))


def _schedule(settings: Mapping[str, Any], pipe: Any, height: int, width: int) -> TemperatureSchedule | None:
    """The schedule that the settings mean for this model; None when they hold none."""
    chosen = {name: settings[name] for name in SCHEDULE_FIELDS if name in settings}
    return schedule_for_pictures(pipe, TacaConfig(**chosen), height=height, width=width) if chosen else None


def _alignment(probe: AttributeProbe, pictures: Tensor, asked: list[DatasetPrompt]) -> dict[str, Any]:
    shown = 100 * score_alignment(probe, pictures, [prompt.attributes for prompt in asked]).per_picture()
    known = [value for value in shown.tolist() if not math.isnan(value)]
    if not known:
        raise DataError(
            "no prompt states an attribute that the probe knows: alignment cannot be judged on this data set"
        )
    return {
        "alignment": sum(known) / len(known),
        "shown": [None if math.isnan(value) else value for value in shown.tolist()],
        "prompt_ids": [prompt.caption_id for prompt in asked],
    }
