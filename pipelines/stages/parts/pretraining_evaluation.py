"""What the model cards of the pre-trained checkpoints report, measured on people of reserved combinations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.evaluation.alignment import score_alignment
from components.evaluation.detection import cnn_accuracy, grain_accuracy
from components.evaluation.figures import contact_sheet, save_png
from components.evaluation.probe.accuracy import evaluate_probe
from components.evaluation.probe.model import AttributeProbe
from components.evaluation.retrieval import retrieval_metrics
from components.gadms.embedding import embed_captions, embed_images
from components.gadms.model import DualEncoder
from components.persons.drawn.attributes import ATTRIBUTES
from components.persons.drawn.captions import compose
from components.persons.drawn.config import PRESETS
from components.persons.drawn.drawing import draw_person
from components.persons.drawn.fresh import EVALUATED_PEOPLE, FreshPeople, stacked
from components.persons.drawn.reserved import sample_reserved
from components.taca.generation import generate
from components.taca.toy.autoencoder import psnr, reconstruct
from components.training.randomness import numpy_generator, stream_seed
from pipelines.engine.context import StageContext
from pipelines.params import PretrainingParameters

BATCH = 40
SHOWN, IN_A_ROW = 40, 10
"""Generated pictures on the contact sheet in MLflow."""


def evaluate(params: PretrainingParameters, inputs: Mapping[str, Path], context: StageContext) -> dict[str, Any]:
    """Return `generator`, `encoder` and `probe` -> their numbers."""
    settings, size = params.pretrain_publish, params.pictures
    people = FreshPeople(
        params.seed, "pretrain_publish", {"clean": 1.0}, height=size.height, width=size.width, domain=EVALUATED_PEOPLE
    )
    shown = people.people(range(settings.pictures))
    pixels = stacked(shown)
    probe = AttributeProbe.load(inputs["probe"]).to(context.device)
    table = evaluate_probe(probe, pixels, probe.labels([person.shown for person in shown]))
    accuracy = {name: row["accuracy"] for name, row in table.items()}
    return {
        "generator": _generator(params, inputs["generator"], people, pixels, probe, accuracy, context),
        "encoder": _encoder(params, inputs["encoder"], context),
        "probe": {
            "balanced_accuracy": _mean(row["balanced_accuracy"] for row in table.values()),
            "worst_balanced_accuracy": min(row["balanced_accuracy"] for row in table.values()),
            "attribute": table,
        },
    }


def _generator(
    params: PretrainingParameters,
    folder: Path,
    people: FreshPeople,
    pixels: Tensor,
    probe: AttributeProbe,
    accuracy: Mapping[str, float],
    context: StageContext,
) -> dict[str, Any]:
    """The VAE's PSNR; without guidance, how often what a prompt says is drawn, and pictures are told from drawn ones.

    `corrected`: what the probe finds is right in q of all pictures, with its accuracy a on real ones and 1 / values by chance
    elsewhere: q = (found - chance) / (a - chance), within 0 and 100 %.
    """
    from diffusers import FluxPipeline

    settings, size = params.pretrain_publish, params.pictures
    pipe = FluxPipeline.from_pretrained(folder, use_safetensors=True).to(context.device)
    pipe.set_progress_bar_config(disable=True)
    quality = float(psnr(pixels, reconstruct(pipe.vae, pixels)).mean())
    # Pictures of one prompt lie beside each other: in one half of those that the classifier below is shown.
    asked = [person for person in people.people(range(settings.prompts)) for _ in range(settings.sampling_seeds)]
    pictures = generate(
        pipe,
        [person.caption for person in asked],
        [stream_seed(params.seed, "pretrain_publish picture", number) for number in range(len(asked))],
        height=size.height,
        width=size.width,
        steps=settings.steps,
        guidance=1.0,
        embedded_guidance=3.5,
        batch_size=BATCH,
    )
    shown = pictures[:: settings.sampling_seeds]
    sheet = [list(shown[i : i + IN_A_ROW]) for i in range(0, min(SHOWN, len(shown)), IN_A_ROW)]
    save_png(contact_sheet(sheet), context.figures / "generator.png")
    drawn = stacked(people.people(range(len(pictures))))
    found = score_alignment(probe, pictures, [person.shown for person in asked]).per_attribute()
    corrected = {}
    for name, share in found.items():
        chance, real = 100 / len(ATTRIBUTES[name]), accuracy.get(name, 100.0)
        corrected[name] = min(100.0, max(0.0, 100 * (share - chance) / (real - chance))) if real > chance else share
    return {
        "vae_psnr": quality,
        "attributes": _mean(found.values()),
        "attributes_corrected": _mean(corrected.values()),
        "worst_attribute_corrected": min(corrected.values()),
        "told_by_cnn": cnn_accuracy(drawn, pictures),
        "told_by_grain": grain_accuracy(drawn, pictures),
        "attribute": found,
    }


def _encoder(params: PretrainingParameters, folder: Path, context: StageContext) -> dict[str, Any]:
    """R@1 without any training on the domain: people of reserved combinations in four views, found by one long caption each."""
    size = params.pictures
    encoder = DualEncoder.load(folder).to(context.device)
    pictures, captions, identities = [], [], []
    for number in range(params.pretrain_publish.people):
        rng = numpy_generator(params.seed, "pretrain_publish person", number)
        person = sample_reserved(rng)
        for view in ATTRIBUTES["view"]:
            picture = draw_person(
                person, rng, height=size.height, width=size.width, degradation=PRESETS["clean"], view=view
            )
            pictures.append(torch.from_numpy(picture.pixels.copy()).movedim(-1, 0))
            captions.append(compose(picture.shown, int(rng.integers(2**62))).text)
            identities.append(number)
    table = torch.stack(pictures)
    images = embed_images(encoder, list(range(len(table))), lambda rows: table[list(rows)])
    keys = torch.tensor(identities)
    return {**retrieval_metrics(embed_captions(encoder, captions), images, keys, keys), "gallery": len(table)}


def _mean(values: Any) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
