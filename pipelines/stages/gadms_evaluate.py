"""Evaluate text-to-person retrieval on the test split, and how well token scores find wrong words in training captions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from components.evaluation.breakdown import by_noise_level
from components.evaluation.ceiling import attribute_match_ceiling
from components.evaluation.intervals import bootstrap_mean
from components.evaluation.retrieval import retrieval_metrics, retrieval_results
from components.gadms.config import ScoringConfig
from components.gadms.embedding import embed_captions, embed_images
from components.gadms.model import DualEncoder
from components.gadms.noise_detection import word_auc, word_scores
from components.persons.drawn.lexicon import states_fact
from components.persons.published.validation_report import recorded_splits
from components.persons.shards import PersonDataset
from pipelines.engine.context import StageContext
from pipelines.params import Parameters
from pipelines.stages.parts.cut_captions import count_cut

SCORES = {
    "gradient": ScoringConfig("gradient"),
    "gradient, signed": ScoringConfig("gradient", normalisation="signed"),
    "path": ScoringConfig("path"),
    "leave-one-out": ScoringConfig("leave-one-out"),
}
"""The token scores that the report shows; the first is the paper's and the metrics `noise_auc` and `noise_auc_facts`; the
second keeps the sign that the paper's ReLU drops. A set whose wrong words are not known has none of these metrics, and one without
attributes no `attribute_ceiling`: a number there would be that of chance, and look like a measurement."""
NOISE_LEVELS = (0.0, 0.2, 0.4)
"""Rates of wrong facts in the new captions by which the test pictures are searched."""


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings, people = params.gadms_evaluate, PersonDataset(inputs["people"])
    validated = recorded_splits(inputs["people"])
    encoder = DualEncoder.load(inputs["model"]).to(context.device)
    queries = list(people.needed_rows(split="test", form="long"))
    gallery = {row["image_id"]: row for row in queries}
    query_ids = torch.tensor([row["identity"] for row in queries])
    gallery_ids = torch.tensor([row["identity"] for row in gallery.values()])
    captions = [row["caption"] for row in queries]

    def embed(model: DualEncoder) -> tuple[torch.Tensor, torch.Tensor]:
        images = embed_images(model, list(gallery), lambda ids: people.pixels(ids, *model.image_size))
        return embed_captions(model, captions), images

    texts, images = embed(encoder)
    results = retrieval_results(texts, images, query_ids, gallery_ids)
    untrained = DualEncoder.create(encoder.config, tokenizer=encoder.tokenizer, seed=params.seed)
    hits = 100 * results.hits(1).numpy()
    interval = bootstrap_mean(hits, units=query_ids.numpy(), resamples=settings.resamples, seed=params.seed)
    every = list(gallery)
    table = {
        "caption_id": [row["caption_id"] for row in queries],
        "image_id": [row["image_id"] for row in queries],
        **results.columns(),
        "found_image_id": [every[place] for place in results.found.tolist()],
    }
    pq.write_table(pa.table(table), outputs["ranks"], compression="none")

    noisy = [row for row in people.rows(split="train", form="long") if row["wrong_words"]][: settings.scored_captions]
    words, aucs, fact_aucs = scored_words(encoder, noisy, people)
    pq.write_table(pa.table(words), outputs["scores"], compression="none")
    shown = [json.loads(row["attributes"]) for row in queries]
    known: dict[str, Any] = {}
    if all(shown):
        held = [json.loads(row["attributes"]) for row in gallery.values()]
        known["attribute_ceiling"] = attribute_match_ceiling(shown, held, query_ids, gallery_ids)
    if aucs:
        known |= {"noise_auc": aucs["gradient"], "score_auc": aucs}
    if fact_aucs:
        known |= {"noise_auc_facts": fact_aucs["gradient"], "score_auc_facts": fact_aucs}
    noise = {}
    if people.sources("test") == ["drawn"] and all(shown):
        corpus = [json.loads(text) for text in people.rows(split="train", form="long").column("attributes")]
        parts = by_noise_level(
            NOISE_LEVELS,
            shown,
            corpus,
            lambda sentences: embed_captions(encoder, sentences),
            images,
            query_ids,
            gallery_ids,
            seed=params.seed,
        )
        noise = {f"{rate:g}": part.as_dict() for rate, part in parts.items()}
    return {
        **results.metrics(),
        "R@1_interval": interval.as_dict(),
        "untrained": retrieval_metrics(*embed(untrained), query_ids, gallery_ids),
        "chance": chance(query_ids, gallery_ids),
        **known,
        "query_noise": noise,
        "captions_cut": count_cut(encoder.tokenizer, captions, "test captions"),
        "gallery": len(gallery),
        "identities": len(set(gallery_ids.tolist())),
        "dataset": ", ".join(people.sources("test")),
        "left_out": validated["test"].left_out if "test" in validated else {},
    }


def scored_words(
    encoder: DualEncoder, rows: Sequence[Mapping[str, Any]], people: PersonDataset
) -> tuple[dict[str, list[Any]], dict[str, float], dict[str, float]]:
    """Return every word of the captions with a column for each of SCORES, and each one's AUC over all words and over facts.

    No AUCs without captions. Which words state a fact is known of drawn people alone; of others there are none over facts.
    """
    drawn = all(json.loads(row["attributes"]) for row in rows)
    columns: dict[str, list[Any]] = {}
    aucs: dict[str, float] = {}
    fact_aucs: dict[str, float] = {}
    for name, config in SCORES.items():
        words, auc = word_scores(encoder, rows, people, config)
        scores = words.pop("score")
        columns = {**words, **columns, name: scores}
        if rows:
            aucs[name] = auc
        if rows and drawn:
            fact_aucs[name] = word_auc(scores, words["wrong"], [states_fact(word) for word in words["word"]])
    return columns, aucs, fact_aucs


def chance(query_ids: torch.Tensor, gallery_ids: torch.Tensor) -> dict[str, float]:
    """Return R@1 of a random ranking, in percent: the mean fraction of the gallery that is correct."""
    # Not queries x gallery, which of 20,000 each takes gigabytes.
    names, pictures = gallery_ids.unique(return_counts=True)
    place = torch.searchsorted(names, query_ids).clamp_max(len(names) - 1)
    right = torch.where(names[place] == query_ids, pictures[place], 0)
    return {"R@1": 100 * right.double().mean().item() / len(gallery_ids)}
