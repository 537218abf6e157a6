"""Evaluate whether generated people show the attributes of their prompts, by the probe, with intervals."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.evaluation.alignment import score_alignment
from components.evaluation.intervals import bootstrap_mean
from components.evaluation.probe.model import AttributeProbe
from components.persons.shards import PersonDataset
from pipelines.engine.context import StageContext
from pipelines.params import Parameters


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    probe, generated = AttributeProbe.load(inputs["probe"]), PersonDataset(inputs["generated"])
    rows = list(generated.rows(split="val"))
    tables, metrics = [], {}
    for source in sorted({row["source"] for row in rows}):
        mine = [row for row in rows if row["source"] == source]
        pixels = generated.pixels([row["image_id"] for row in mine], probe.height, probe.width)
        scores = score_alignment(probe, pixels, [json.loads(row["attributes"]) for row in mine])
        interval = bootstrap_mean(
            100 * scores.per_picture(), resamples=params.taca_evaluate.resamples, seed=params.seed
        )
        metrics[source.replace(" ", "_")] = {
            "alignment": interval.as_dict(),
            "attribute_mean": scores.mean(),
            "attribute": scores.per_attribute(),
        }
        columns = {name: scores.correct[:, column] for column, name in enumerate(scores.attributes)}
        prompts = {"source": [source] * len(mine), "prompt_id": [row["identity"] for row in mine]}
        tables.append(pa.table({**prompts, **columns}))
    pq.write_table(pa.concat_tables(tables), outputs["alignment"], compression="none")
    return metrics
