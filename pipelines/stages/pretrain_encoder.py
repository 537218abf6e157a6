"""Train the dual encoder with its masked-token decoder on pictures of a catalogue: another domain than that of the default."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.gadms.model import DualEncoder
from components.gadms.pretraining import EncoderPretraining, fresh_pairs
from components.gadms.tokenizer import CaptionTokenizer
from components.persons.drawn.catalogue import catalogue_words
from components.persons.drawn.fresh import CATALOGUE_PEOPLE, FreshPeople
from components.persons.drawn.words import VOCABULARY
from components.training.loop import fit
from pipelines.engine.context import StageContext
from pipelines.params import PretrainingParameters


def run(
    params: PretrainingParameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings, size = params.pretrain_encoder, params.pictures
    # All words have a token, also those that these captions never use: CLIP's tokenizer has them too.
    tokenizer = CaptionTokenizer.from_corpus([*VOCABULARY, *catalogue_words(), *(f"{word}." for word in VOCABULARY)])
    encoder = DualEncoder.create(
        settings.architecture, image_size=(size.height, size.width), tokenizer=tokenizer, seed=params.seed
    )
    people = FreshPeople(
        params.seed, "pretrain_encoder", settings.presets, height=size.height, width=size.width, domain=CATALOGUE_PEOPLE
    )
    ranks = {"rank": context.rank, "world_size": context.world_size}
    task = EncoderPretraining(
        encoder,
        seed=params.seed,
        mtp_weight=settings.mtp_weight,
        temperature=settings.temperature,
        decoder_depth=settings.decoder_depth,
        **ranks,
    )
    training = settings.training
    fit(task, fresh_pairs(encoder, people, training, **ranks), training, context, prefix="encoder")
    task.save(outputs["encoder"])
    return {"pictures": training.samples, "parameters": sum(p.numel() for p in encoder.parameters())}
