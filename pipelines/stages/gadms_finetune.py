"""Fine-tune the pre-trained dual encoder on real people by the arm's method."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.gadms.model import DualEncoder
from components.persons.shards import PersonDataset
from pipelines.engine.context import StageContext
from pipelines.params import Parameters
from pipelines.stages.parts.retrieval_training import train_arm


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings = params.gadms_finetune
    encoder = DualEncoder.load(inputs["pretrained"])
    people = PersonDataset(inputs["people"])
    return train_arm(encoder, people, settings.method, settings.training, params, context, outputs["model"])
