"""Train the attribute classifier on people drawn afresh."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.evaluation.probe.fresh import fresh_labelled
from components.evaluation.probe.model import AttributeProbe
from components.evaluation.probe.training import ProbeTask
from components.persons.drawn.attributes import ATTRIBUTES, MIRRORED
from components.persons.drawn.fresh import FreshPeople
from components.training.loop import fit
from pipelines.engine.context import StageContext
from pipelines.params import PretrainingParameters


def run(
    params: PretrainingParameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings, size = params.pretrain_probe, params.pictures
    probe = AttributeProbe(ATTRIBUTES, height=size.height, width=size.width, seed=params.seed)
    people = FreshPeople(params.seed, "pretrain_probe", settings.presets, height=size.height, width=size.width)
    ranks = {"rank": context.rank, "world_size": context.world_size}
    training = settings.training
    task = ProbeTask(probe, seed=params.seed, mirrored=MIRRORED, **ranks)
    fit(task, fresh_labelled(probe, people, training, **ranks), training, context, prefix="probe")
    probe.save(outputs["probe"])
    return {"pictures": training.samples, "parameters": sum(p.numel() for p in probe.parameters())}
