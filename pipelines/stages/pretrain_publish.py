"""Evaluate the pre-trained checkpoints on people that no training has seen, and write them as published ones, with model cards."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.errors import DataError
from pipelines.engine.context import StageContext
from pipelines.params import PretrainingParameters
from pipelines.stages.parts.model_cards import write_cards
from pipelines.stages.parts.pretraining_evaluation import evaluate

PUBLISHED = ("generator", "encoder", "probe")


def run(
    params: PretrainingParameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    metrics = evaluate(params, inputs, context)
    target = outputs["checkpoints"]
    for name in PUBLISHED:
        shutil.copytree(inputs[name], target / name)
    # Named by its fingerprint, which is what the bytes depend on: code, recipe, packages and threads.
    write_cards(target, params, metrics, context.scratch.folder.name)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file()) / 2**20
    limit = params.pretrain_publish.megabytes
    if size > limit:
        raise DataError(
            f"the checkpoints are {size:.1f} MB; pretrain_publish.megabytes allows {limit}: make a model smaller"
        )
    return {**metrics, "megabytes": round(size, 2)}
