"""Select generated people for training: those that the rules allow, that are sharp enough, and that match their captions.

The match is scored by a small dual encoder trained here, contrastively, on the train split alone. Why each picture was kept or
dropped is in `curated/decisions.parquet`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from components.gadms.methods import RetrievalConfig
from components.gadms.tasks import RetrievalTask
from components.persons.curation.candidates import rule_reasons
from components.persons.curation.keypoints import KeypointRCNN
from components.persons.curation.limits import PersonLimits, Rules
from components.persons.curation.selection import KEPT, Thresholds, decide, quality
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset
from components.training.loop import fit
from pipelines.engine.context import StageContext
from pipelines.params import Parameters
from pipelines.stages.parts.retrieval_training import caption_batches, match_scores, new_encoder


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    people, generated = PersonDataset(inputs["people"]), PersonDataset(inputs["generated"])
    settings, size = params.curate, (params.pictures.height, params.pictures.width)
    rows = people.needed_rows(split="train", form="long")
    root = inputs["people"].parents[1]  # the workspace
    encoder = new_encoder(params, rows.column("caption"), root=root)
    # All of it is the warm-up: weights may be new.
    method = RetrievalConfig(name="contrastive", warmup_steps=settings.matcher.steps)
    task = RetrievalTask(encoder, method, captions=len(rows), seed=params.seed)
    matcher = settings.matcher
    with caption_batches(encoder, people, rows, matcher.batch, matcher.steps, params, context) as batches:
        fit(task, batches, matcher, context)

    corpus = generated.needed_rows(split="train", form="long")
    matches = match_scores(encoder, generated, corpus)
    drawn = list(matches)
    real = quality(_blocks(people, sorted(set(rows.column("image_id"))), size))
    thresholds = Thresholds.from_real(real, settings.quality_share)
    found = settings.detector
    detector = KeypointRCNN(root / found.weights, sha256=found.sha256, device=context.device) if found else None
    limits = {field.name: getattr(found, field.name) for field in fields(PersonLimits)} if found else {}
    rules = Rules(short_side=settings.short_side, aspect=settings.aspect, **limits)
    refused, hashes = rule_reasons((generated.picture(i) for i in drawn), rules, detector)
    reasons = decide(
        quality(_blocks(generated, drawn, size)),
        [matches[i] for i in drawn],
        thresholds,
        settings.keep_fraction,
        refused=refused,
        hashes=hashes,
        near=settings.near_duplicates,
    )
    captions: dict[int, list[dict[str, Any]]] = {}
    for row in corpus:
        captions.setdefault(row["image_id"], []).append(row)
    with DatasetWriter(outputs["curated"]) as writer:
        for image_id, reason in zip(drawn, reasons, strict=True):
            if reason == KEPT:
                writer.add(
                    generated.image_bytes(image_id),
                    [CaptionRow(row["caption"], "long", tuple(row["wrong_words"])) for row in captions[image_id]],
                    identity=image_id,
                    split="train",
                    source="generated",
                )
    table = {"image_id": drawn, "match": [matches[i] for i in drawn], "reason": reasons}
    pq.write_table(pa.table(table), outputs["curated"] / "decisions.parquet", compression="none")
    return {
        "pictures": len(drawn),
        "kept": reasons.count(KEPT),
        "dropped": {reason: reasons.count(reason) for reason in sorted(set(reasons) - {KEPT})},
    }


def _blocks(dataset: PersonDataset, image_ids: Sequence[int], size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """Yield the pictures uint8 (n, 3, *size), up to 512 at a time."""
    for start in range(0, len(image_ids), 512):
        yield dataset.pixels(image_ids[start : start + 512], *size)
