"""Pre-train the dual encoder on generated people: contrastive warm-up, then this arm's method."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.persons.shards import PersonDataset
from pipelines.context import StageContext
from pipelines.params import Parameters
from pipelines.stages.retrieval import new_encoder, train_arm


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    curated, settings = PersonDataset.open(inputs["curated"]), params.gadms_pretrain
    encoder = new_encoder(params, curated.rows(split="train", form="long").column("caption"))
    return train_arm(encoder, curated, settings.method, settings.training, params, context, outputs["model"])
