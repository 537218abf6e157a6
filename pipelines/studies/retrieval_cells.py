"""The measurements of retrieval studies: train an encoder on the captions of a condition, and evaluate it.

Batches, model and optimiser are those of the stage `gadms_finetune`; validation is not, as nothing is selected.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from components.evaluation.retrieval import retrieval_results
from components.gadms.embedding import embed_captions, embed_images
from components.gadms.model import DualEncoder
from components.persons.drawn.confusion import Confusion
from components.persons.drawn.recaptioning import recaptioned
from components.persons.shards import PersonDataset
from components.training.randomness import stream_seed
from pipelines.engine.context import StageContext
from pipelines.params import Parameters
from pipelines.scratch.metric_log import MetricLog
from pipelines.stages.parts.retrieval_training import new_encoder, train_arm
from pipelines.studies.cells import Cell, CellContext

DATA = ("noise", "confusion", "joined", "seed", "skip", "people")
SCHEDULE = ("steps", "warmup_steps", "learning_rate")
WATCHED = (
    *("noise_auc", "noise_auc_facts", "noise_precision", "noise_recall", "wrong_share", "noise_rate"),
    "masked_by_score",
)
"""Metrics of scores and masks that training reports where wrong words are known."""


def evaluate(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Evaluate the published start as it is."""
    return search(begun(context), PersonDataset(context.inputs["people"]))


def start(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Train a start from random weights, as in the contrastive warm-up, and keep it.

    Its vocabulary is that of the whole training split, which includes the words of the arms' captions.
    """
    people = captioned(cell.settings, context)
    params = context.params(seed=stream_seed(cell.settings["seed"], "start"))
    every = PersonDataset(context.inputs["people"]).rows(split="train", form="long")
    encoder = new_encoder(params, every.column("caption"))
    method = {"name": "contrastive", "warmup_steps": cell.settings["steps"]}
    train_encoder(encoder, people, method, cell, context, params)
    return search(encoder, people)


def train(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Train the start with a method and evaluate it; the encoder is not kept.

    "hits" (whether found first, in percent) and "identity" are lists over the test captions; retrieval metrics in percent.
    "training/..." are the metrics of scores and masks, as means over the second half of the reports.
    """
    return trained(cell, context, cell.settings["method"], keep=False)


def pretrain(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Train as `train` and keep the encoder, for `finetune`."""
    return trained(cell, context, cell.settings["method"], keep=True)


def finetune(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Train the encoder that the needed cell kept, and evaluate it."""
    return trained(cell, context, cell.settings["method"], keep=False)


def trained(cell: Cell, context: CellContext, method: Mapping[str, Any], *, keep: bool) -> dict[str, Any]:
    """Train what the cell begins from on the captions of its settings, with `method` as `train_encoder` takes it; evaluate it."""
    encoder = begun(context)
    people = captioned(cell.settings, context)
    params = context.params(seed=cell.settings["seed"])
    training = train_encoder(encoder, people, method, cell, context, params, keep=keep)
    return {**search(encoder, people), **watched(training)}


def begun(context: CellContext) -> DualEncoder:
    """Load the encoder that training begins from: that of the needed cell, or else the published start."""
    (folder,) = [folder / "encoder" for folder in context.needs.values()] or [context.inputs["start"]]
    return DualEncoder.load(folder)


def captioned(settings: Mapping[str, Any], context: CellContext) -> PersonDataset:
    """Return the data set with the captions of the settings' condition and seed, made once per process."""
    chosen: dict[str, Any] = {name: settings.get(name) for name in DATA}
    folder = context.inputs["people"]
    confusion = chosen["confusion"]
    return context.shared(
        ("people", str(folder), str(sorted(chosen.items(), key=str))),
        lambda: recaptioned(
            PersonDataset(folder),
            chosen["noise"],
            chosen["seed"],
            people=chosen["people"],
            skip=chosen["skip"],
            confusion=Confusion(**confusion) if confusion else None,
            joined=bool(chosen["joined"]),
        ),
    )


def train_encoder(
    encoder: DualEncoder,
    people: PersonDataset,
    method: Mapping[str, Any],
    cell: Cell,
    context: CellContext,
    params: Parameters,
    *,
    keep: bool = True,
) -> StageContext:
    """Train in place on the training split of `people`. `method` holds changes to gadms_finetune.method.

    The encoder is kept in the cell's files, or else is only that of this process.
    """
    settings = params.gadms_finetune
    changed = replace(settings.method, **{"warmup_steps": 0, **method})
    training = replace(settings.training, **{name: cell.settings[name] for name in SCHEDULE}, validate_every=None)
    stage = context.training_context(params.seed, changed.name)
    train_arm(encoder, people, changed, training, params, stage, context.files / "encoder")
    if not keep:
        shutil.rmtree(context.files)
    return stage


def search(encoder: DualEncoder, people: PersonDataset) -> dict[str, Any]:
    """Evaluate retrieval of test pictures with test captions, which are true."""
    rows = list(people.rows(split="test", form="long"))
    gallery = {row["image_id"]: row["identity"] for row in rows}
    identities = [row["identity"] for row in rows]
    results = retrieval_results(
        embed_captions(encoder, [row["caption"] for row in rows]),
        embed_images(encoder, list(gallery), lambda ids: people.pixels(ids, *encoder.image_size)),
        torch.tensor(identities),
        torch.tensor(list(gallery.values())),
    )
    return {**results.metrics(), "hits": (100 * results.hits(1)).tolist(), "identity": identities}


def watched(training: StageContext) -> dict[str, float]:
    """Return the metrics of scores and masks, as means over the second half of the reports."""
    lines = [line["metrics"] for line in MetricLog(training.scratch.metrics_file).read()]
    later = lines[len(lines) // 2 :]
    found = {}
    for name in WATCHED:
        values = [line[f"train/{name}"] for line in later if f"train/{name}" in line]
        if values:
            found[f"training/{name}"] = sum(values) / len(values)
    return found
