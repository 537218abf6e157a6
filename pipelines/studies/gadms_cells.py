"""How the cells of the GA-DMS study are measured: an encoder trained and searched with, or its token scores held against the truth.

Training is that of the stage `gadms_finetune`, on the training pictures with captions of the cell's own noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from components.evaluation.retrieval import retrieval_results
from components.gadms.config import ScoringConfig
from components.gadms.embedding import embed_captions, embed_images
from components.gadms.model import DualEncoder
from components.gadms.noise_detection import word_auc, word_scores
from components.persons.drawn.lexicon import SYNONYMS
from components.persons.drawn.recaptioning import recaptioned
from components.persons.shards import PersonDataset
from components.training.randomness import stream_seed
from pipelines.engine.context import StageContext
from pipelines.params import Parameters
from pipelines.scratch.metric_log import MetricLog
from pipelines.stages.parts.retrieval import new_encoder, train_arm
from pipelines.studies.cells import Bench, Cell

DATA = ("noise", "seed", "skip", "people")
SCHEDULE = ("steps", "warmup_steps", "learning_rate")
COLOURS = frozenset(
    word for name, values in SYNONYMS.items() if name.endswith("_colour") for words in values.values() for word in words
)
WATCHED = ("noise_auc", "noise_precision", "noise_recall", "wrong_share", "noise_rate")
"""What training reports of scores and masks where wrong words are known."""


def start(cell: Cell, bench: Bench) -> dict[str, Any]:
    """An encoder from random weights after contrastive learning: what arms begin with.

    Its vocabulary is that of the whole training split: it has tokens for the words that arms will meet.
    """
    people = _people(cell, bench)
    params = bench.params(seed=stream_seed(cell.settings["seed"], "start"))
    every = PersonDataset.open(bench.inputs["people"]).rows(split="train", form="long")
    encoder = new_encoder(params, every.column("caption"))
    _train(encoder, people, {"name": "contrastive"}, cell, bench, params)
    return _search(encoder, people)


def train(cell: Cell, bench: Bench) -> dict[str, Any]:
    """The start trained on by a method.

    "first_rank" and "identity" are lists over the test sentences; retrieval metrics in percent. Under "training/" is what
    training reported of its scores and masks, the mean over the second half of its reports.
    """
    people = _people(cell, bench)
    (start,) = bench.needs.values()
    encoder = DualEncoder.load(start / "encoder")
    own = {name: value for name, value in cell.settings.items() if name not in (*DATA, *SCHEDULE)}
    context = _train(encoder, people, own, cell, bench, bench.params(seed=cell.settings["seed"]))
    return {**_search(encoder, people), **_watched(context)}


def score(cell: Cell, bench: Bench) -> dict[str, Any]:
    """How often each score puts a right word above a wrong one of any caption, for an arm's trained encoder.

    "seen": captions it was trained on (none without noise); "unseen": those of test people, described with `unseen_noise`. With
    "_colour": colour words alone, which are false as often as true ones are frequent, and sit in the same places.
    """
    settings = cell.settings
    (trained,) = bench.needs.values()
    encoder = DualEncoder.load(trained / "encoder").to(bench.device)
    seen = _people(cell, bench)
    unseen = recaptioned(seen, settings["unseen_noise"], settings["seed"], split="test")
    found: dict[str, Any] = {}
    for kind, people, split in (("seen", seen, "train"), ("unseen", unseen, "test")):
        rows = [row for row in people.rows(split=split, form="long") if row["wrong_words"]][: settings["captions"]]
        for name, config in settings["scores"].items() if rows else ():
            scoring = ScoringConfig(**config)
            words, auc = word_scores(encoder, rows, people, scoring)
            found[f"{kind}/{name}"] = auc
            found[f"{kind}_colour/{name}"] = word_auc(*_colours(words))
    return found


def _people(cell: Cell, bench: Bench) -> PersonDataset:
    """The data set with the captions of this noise and seed; made once for all cells of a process that share them."""
    noise, seed, skip, number = (cell.settings[name] for name in DATA)
    folder = bench.inputs["people"]
    return bench.shared(
        ("people", noise, seed, skip, number),
        lambda: recaptioned(PersonDataset.open(folder), noise, seed, people=number, skip=skip),
    )


def _train(
    encoder: DualEncoder, people: PersonDataset, method: Mapping[str, Any], cell: Cell, bench: Bench, params: Parameters
) -> StageContext:
    """Train in place and keep the encoder. `method`: how it differs from gadms_finetune.method."""
    settings = params.gadms_finetune
    changed = replace(settings.method, **{"warmup_steps": 0, **method})
    schedule = {name: cell.settings[name] for name in SCHEDULE}
    context = bench.context(params.seed, changed.name)
    train_arm(
        encoder,
        people,
        changed,
        replace(settings.training, **schedule, validate_every=None),
        params,
        context,
        bench.files / "encoder",
    )
    return context


def _search(encoder: DualEncoder, people: PersonDataset) -> dict[str, Any]:
    """The test sentences, which are true, search the test pictures."""
    rows = list(people.rows(split="test", form="long"))
    gallery = {row["image_id"]: row["identity"] for row in rows}
    identities = [row["identity"] for row in rows]
    results = retrieval_results(
        embed_captions(encoder, [row["caption"] for row in rows]),
        embed_images(encoder, list(gallery), lambda ids: people.pixels(ids, *encoder.image_size)),
        torch.tensor(identities),
        torch.tensor(list(gallery.values())),
    )
    return {**results.metrics(), "first_rank": results.first_rank.tolist(), "identity": identities}


def _watched(context: StageContext) -> dict[str, float]:
    lines = [line["metrics"] for line in MetricLog(context.scratch.metrics_file).read()]
    later = lines[len(lines) // 2 :]
    found = {}
    for name in WATCHED:
        values = [line[f"train/{name}"] for line in later if f"train/{name}" in line]
        if values:
            found[f"training/{name}"] = sum(values) / len(values)
    return found


def _colours(words: Mapping[str, Sequence[Any]]) -> tuple[list[float], list[bool]]:
    """Scores of the words that name a colour, and which of them are wrong."""
    rows = [
        (score, wrong)
        for word, score, wrong in zip(words["word"], words["score"], words["wrong"], strict=True)
        if word.strip(".,").lower() in COLOURS
    ]
    return [score for score, _ in rows], [wrong for _, wrong in rows]
