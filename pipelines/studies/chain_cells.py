"""The measurements of the chain: draw a corpus, pre-train on it, fine-tune, and evaluate."""

from typing import Any

from components.gadms.model import DualEncoder
from components.persons.pixels import encode_png
from components.persons.prompts import DatasetPrompt, dataset_prompts
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset
from components.taca.config import TacaConfig
from components.taca.generation import Adapter, Arm, apply_arm, generate, schedule_for_pictures
from components.taca.reference import DTYPES, load_base
from components.training.randomness import stream_seed
from pipelines.studies.cells import Cell, CellContext
from pipelines.studies.retrieval_cells import begun, captioned, evaluate, search, train_encoder
from pipelines.studies.taca_cells import base_of, cache
from pipelines.studies.taca_cells import train as adapter

__all__ = ["adapter", "cache", "corpus", "evaluate", "finetune", "pretrain"]


def corpus(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Write the pictures of one source, with the long captions of the prompts; each picture is a person of its own."""
    settings = cell.settings
    people = captioned(settings, context)
    prompts = dataset_prompts(people, "train", len(people.rows(split="train")))
    with DatasetWriter(context.files / "corpus") as writer:
        for prompt, picture in zip(prompts, _pictures(prompts, people, cell, context), strict=True):
            captions = [CaptionRow(prompt.text, "short"), *prompt.captions]
            writer.add(
                picture, captions, identity=prompt.image_id, split="train", source=settings["source"], attributes={}
            )
    return {"pictures": len(prompts)}


def _pictures(prompts: list[DatasetPrompt], people: PersonDataset, cell: Cell, context: CellContext) -> list[bytes]:
    settings, params = cell.settings, context.params()
    if settings["source"] == "drawn":
        return [people.image_bytes(prompt.image_id) for prompt in prompts]
    size: dict[str, Any] = {"height": params.pictures.height, "width": params.pictures.width}
    steps = params.taca_generate.steps
    pipe = load_base(base_of(context), dtype=DTYPES[params.taca_generate.base_dtype]).to(context.device)
    schedule = None
    if settings["schedule"]:
        schedule = schedule_for_pictures(pipe, TacaConfig(**settings["schedule"]), steps=steps, **size)
    adapters = tuple(
        Adapter(folder / "adapter", threshold=schedule.active_from if schedule else 0.0)
        for folder in context.needs.values()
    )
    with apply_arm(pipe, Arm(adapters, schedule)):
        drawn = generate(
            pipe,
            [prompt.text for prompt in prompts],
            [stream_seed(settings["seed"], "picture", prompt.caption_id) for prompt in prompts],
            steps=steps,
            guidance=settings["guidance"],
            batch_size=params.taca_generate.batch,
            **size,
        )
    return [encode_png(picture) for picture in drawn]


def pretrain(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Train the published encoder on the corpus and keep it; retrieval among the test people as it is then."""
    (folder,) = context.needs.values()
    people = PersonDataset(folder / "corpus")
    params = context.params(seed=cell.settings["seed"])
    encoder = DualEncoder.load(context.inputs["start"])
    train_encoder(encoder, people, cell.settings["method"], cell, context, params)
    return search(encoder, PersonDataset(context.inputs["people"]))


def finetune(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Train the pre-trained encoder, or the published one, on real people with correct captions, and evaluate it."""
    encoder = begun(context)
    people = captioned(cell.settings, context)
    params = context.params(seed=cell.settings["seed"])
    train_encoder(encoder, people, cell.settings["method"], cell, context, params, keep=False)
    return search(encoder, people)
