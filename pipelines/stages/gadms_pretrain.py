"""Pre-train the dual encoder: contrastive warm-up, then the arm's method, by default on generated people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.persons.shards import PersonDataset
from components.persons.streaming.corpus import open_corpus
from pipelines.engine.context import StageContext
from pipelines.params import Parameters
from pipelines.stages.parts.retrieval_training import new_encoder, train_arm
from pipelines.stages.parts.streamed_training import train_streamed


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings = params.gadms_pretrain
    folder, root = inputs["people" if settings.corpus == "people" else "curated"], inputs["curated"].parents[1]
    if settings.streaming and settings.corpus != "none":
        stream = open_corpus(folder)
        encoder = new_encoder(params, stream.captions(), root=root)
        return train_streamed(
            encoder, stream, settings.method, settings.training, params, context, outputs["model"], settings.readers
        )
    corpus = PersonDataset(folder)
    encoder = new_encoder(params, corpus.needed_rows(split="train", form="long").column("caption"), root=root)
    if settings.corpus == "none":  # fine-tuning begins with the published weights
        encoder.save(outputs["model"], decoder=encoder.decoder_weights)
        return {"parameters": sum(p.numel() for p in encoder.parameters())}
    return train_arm(encoder, corpus, settings.method, settings.training, params, context, outputs["model"])
