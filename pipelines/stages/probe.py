"""Train the attribute classifier that judges generated people, on real pictures only, and evaluate it on held-out ones."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.evaluation.probe.accuracy import evaluate_probe
from components.evaluation.probe.model import AttributeProbe
from components.evaluation.probe.training import ProbeTask, probe_batches
from components.persons.drawn.attributes import ATTRIBUTES, MIRRORED
from components.persons.shards import PersonDataset
from components.training.loop import fit
from pipelines.engine.context import StageContext
from pipelines.params import Parameters


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    people, size = PersonDataset(inputs["people"]), params.pictures
    published = params.probe.source
    if published is None:
        probe = AttributeProbe(ATTRIBUTES, height=size.height, width=size.width, seed=params.seed)
    else:
        probe = AttributeProbe.load_pinned(inputs["people"].parents[1] / published, params.probe.sha256)

    def labelled(split: str) -> tuple[Any, Any]:
        rows = {row["image_id"]: row["attributes"] for row in people.needed_rows(split)}
        return people.pixels(list(rows), size.height, size.width), probe.labels([json.loads(a) for a in rows.values()])

    if published is None:
        _train(probe, labelled("train"), params, context)
    probe.save(outputs["probe"])

    table = evaluate_probe(probe, *labelled("test"))
    means = {key: sum(row[key] for row in table.values()) / len(table) for key in ("balanced_accuracy", "majority")}
    worst = min(row["balanced_accuracy"] for row in table.values())
    return {**means, "worst_balanced_accuracy": worst, "attribute": table}


def _train(probe: AttributeProbe, pictures: tuple[Any, Any], params: Parameters, context: StageContext) -> None:
    training = params.probe.training
    task = ProbeTask(probe, seed=params.seed, mirrored=MIRRORED, rank=context.rank, world_size=context.world_size)
    batches = probe_batches(
        *pictures, batch_size=training.batch, seed=params.seed, rank=context.rank, world_size=context.world_size
    )
    fit(task, batches, training, context, prefix="probe")
