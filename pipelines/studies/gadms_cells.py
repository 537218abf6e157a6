"""The measurements of the GA-DMS study: train and evaluate an encoder, or compare its token scores with the wrong words.

Training is that of the stage `gadms_finetune`, on the training pictures with captions at the cell's noise level.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from components.evaluation.retrieval import retrieval_results
from components.gadms.config import ScoringConfig
from components.gadms.embedding import embed_captions, embed_images
from components.gadms.model import DualEncoder
from components.gadms.noise_detection import word_auc, word_scores
from components.persons.drawn.lexicon import SYNONYMS, states_fact
from components.persons.drawn.recaptioning import recaptioned
from components.persons.shards import PersonDataset
from components.training.randomness import stream_seed
from pipelines.engine.context import StageContext
from pipelines.params import Parameters
from pipelines.scratch.metric_log import MetricLog
from pipelines.stages.parts.retrieval_training import new_encoder, train_arm
from pipelines.studies.cells import Cell, CellContext

DATA = ("noise", "seed", "skip", "people")
SCHEDULE = ("steps", "warmup_steps", "learning_rate")
COLOURS = frozenset(
    word for name, values in SYNONYMS.items() if name.endswith("_colour") for words in values.values() for word in words
)
WATCHED = (
    *("noise_auc", "noise_auc_facts", "noise_precision", "noise_recall", "wrong_share", "noise_rate"),
    "masked_by_score",
)
"""Metrics of scores and masks that training reports where wrong words are known."""


def start(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Train the common start of the arms: an encoder from random weights, trained as in the contrastive warm-up.

    Its vocabulary is that of the whole training split, which includes the words of the arms' captions.
    """
    people = _people(cell, context)
    params = context.params(seed=stream_seed(cell.settings["seed"], "start"))
    every = PersonDataset(context.inputs["people"]).rows(split="train", form="long")
    encoder = new_encoder(params, every.column("caption"))
    method = {"name": "contrastive", "warmup_steps": cell.settings["steps"]}
    _train(encoder, people, method, cell, context, params)
    return _search(encoder, people)


def train(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Train the start with a method and evaluate it.

    "hits" (whether found first, in percent) and "identity" are lists over the test captions; retrieval metrics in percent.
    "training/..." are the metrics of scores and masks, as means over the second half of the reports.
    """
    people = _people(cell, context)
    (start,) = context.needs.values()
    encoder = DualEncoder.load(start / "encoder")
    own = {name: value for name, value in cell.settings.items() if name not in (*DATA, *SCHEDULE)}
    training = _train(encoder, people, own, cell, context, context.params(seed=cell.settings["seed"]))
    return {**_search(encoder, people), **_watched(training)}


def score(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Return the AUC of each score for right over wrong words, on an arm's trained encoder.

    "seen": captions it was trained on (none without noise); "unseen": those of test people, with `unseen_noise`. "_fact": only
    words that state a fact; "_colour": only colour words, whose wrong and right ones have the same frequency and position.
    """
    settings = cell.settings
    (trained,) = context.needs.values()
    encoder = DualEncoder.load(trained / "encoder").to(context.device)
    seen = _people(cell, context)
    unseen = recaptioned(seen, settings["unseen_noise"], settings["seed"], split="test")
    found: dict[str, Any] = {}
    for kind, people, split in (("seen", seen, "train"), ("unseen", unseen, "test")):
        rows = [row for row in people.rows(split=split, form="long") if row["wrong_words"]][: settings["captions"]]
        for name, config in settings["scores"].items() if rows else ():
            scoring = ScoringConfig(**config)
            words, auc = word_scores(encoder, rows, people, scoring)
            found[f"{kind}/{name}"] = auc
            for part, is_one in (("fact", states_fact), ("colour", _is_colour)):
                among = [is_one(word) for word in words["word"]]
                found[f"{kind}_{part}/{name}"] = word_auc(words["score"], words["wrong"], among)
    return found


def _people(cell: Cell, context: CellContext) -> PersonDataset:
    """Return the data set with captions at this noise and seed, made once per process."""
    noise, seed, skip, number = (cell.settings[name] for name in DATA)
    folder = context.inputs["people"]
    return context.shared(
        ("people", noise, seed, skip, number),
        lambda: recaptioned(PersonDataset(folder), noise, seed, people=number, skip=skip),
    )


def _train(
    encoder: DualEncoder,
    people: PersonDataset,
    method: Mapping[str, Any],
    cell: Cell,
    context: CellContext,
    params: Parameters,
) -> StageContext:
    """Train in place and save the encoder. `method` holds changes to gadms_finetune.method."""
    settings = params.gadms_finetune
    changed = replace(settings.method, **{"warmup_steps": 0, **method})
    schedule = {name: cell.settings[name] for name in SCHEDULE}
    training = context.training_context(params.seed, changed.name)
    train_arm(
        encoder,
        people,
        changed,
        replace(settings.training, **schedule, validate_every=None),
        params,
        training,
        context.files / "encoder",
    )
    return training


def _search(encoder: DualEncoder, people: PersonDataset) -> dict[str, Any]:
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


def _watched(training: StageContext) -> dict[str, float]:
    lines = [line["metrics"] for line in MetricLog(training.scratch.metrics_file).read()]
    later = lines[len(lines) // 2 :]
    found = {}
    for name in WATCHED:
        values = [line[f"train/{name}"] for line in later if f"train/{name}" in line]
        if values:
            found[f"training/{name}"] = sum(values) / len(values)
    return found


def _is_colour(word: str) -> bool:
    return word.strip(".,").lower() in COLOURS
