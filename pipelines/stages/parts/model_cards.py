"""The model cards of the pre-trained checkpoints, in the form that the Hugging Face hub reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.persons.drawn.catalogue import HELD_OUT, WORN_BY_NOBODY
from components.persons.drawn.config import Preset
from components.persons.drawn.reserved import RESERVED_SHARE
from components.training.numbered import OncePerSample
from pipelines.params import PretrainingParameters

LICENCE = "That of this repository. The data are drawn by its own code; no third party's pictures, texts or weights are in it."
_STREET = "drawn people of `components/persons/drawn`"
_LIMITS = (
    "It knows drawn people of {height} x {width} pixels and nothing else: it is made for tests and studies of methods on a "
    "laptop, and says nothing about photographs."
)


def write_cards(folder: Path, params: PretrainingParameters, metrics: Mapping[str, Any], made_by: str) -> None:
    """Write a README.md into each checkpoint of `folder`; `made_by` names the result by its fingerprint."""
    generator, encoder, probe = metrics["generator"], metrics["encoder"], metrics["probe"]
    vae, flow = params.pretrain_autoencoder.training, params.pretrain_generator.training
    decoder = params.pretrain_decoder.training
    held_out = ", ".join(value for values in WORN_BY_NOBODY.values() for value in values)
    cards = {
        "generator": _card(
            "A small FLUX pipeline that draws people",
            "text-to-image",
            "`FluxPipeline.from_pretrained(folder)` of diffusers reads it: a VAE of scale 2, two small text encoders over a list "
            "of words, and a FLUX transformer, trained from nothing by rectified flow.",
            f"{_STREET}, with their short captions; {_weights(params.pretrain_generator.presets)}.",
            {"VAE": vae, "transformer and text encoders": flow, "decoder, against a discriminator": decoder},
            {
                "PSNR of the VAE, dB": generator["vae_psnr"],
                "attributes drawn as asked, no guidance, as the probe sees them, %": generator["attributes"],
                "the same, corrected for the probe's error, %": generator["attributes_corrected"],
                "the worst attribute, corrected, %": generator["worst_attribute_corrected"],
                "held-out pictures told from drawn ones by a small CNN, % (50: none)": generator["told_by_cnn"],
                "the same by their grain (differences of neighbouring pixels), %": generator["told_by_grain"],
            },
            "Its tokenizers know the words of short captions; any other word is `<unk>`.",
        ),
        "encoder": _card(
            "A small CLIP with a masked-token decoder",
            "zero-shot-image-classification",
            "`open_clip.create_model('local-dir:<folder>')` reads it; `masked_token_decoder.safetensors` is the decoder of IRRA "
            "and GA-DMS that was trained with it.",
            "people of a catalogue: the same attributes in other colours, poses and backgrounds, with captions of 1 to 15 words. "
            f"Captions never state {', '.join(HELD_OUT)}; nobody wears or carries {held_out}; of synonyms only one is used.",
            {"encoder and decoder": params.pretrain_encoder.training},
            {
                "R@1 of long captions in the drawn set's domain, without training on it, %": encoder["R@1"],
                "mAP, %": encoder["mAP"],
                "pictures in the gallery": encoder["gallery"],
            },
            "It is a start and not a result: words and attributes that were held out are unknown to it.",
        ),
        "probe": _card(
            "A classifier of the attributes of drawn people",
            "image-classification",
            "`AttributeProbe.load(folder)` of `components/evaluation/probe/model.py` reads it.",
            f"{_STREET}; {_weights(params.pretrain_probe.presets)}.",
            {"probe": params.pretrain_probe.training},
            {
                "balanced accuracy, mean over attributes, %": probe["balanced_accuracy"],
                "balanced accuracy of the worst attribute, %": probe["worst_balanced_accuracy"],
            },
            "It was trained on drawn pictures: how it errs on generated ones is not known.",
        ),
    }
    size = {"height": params.pictures.height, "width": params.pictures.width}
    for name, text in cards.items():
        whole = text.format(seed=params.seed, made_by=made_by, limits=_LIMITS.format(**size), licence=LICENCE)
        (folder / name / "README.md").write_text(whole, encoding="utf-8")


def _card(
    title: str,
    task: str,
    what: str,
    data: str,
    trainings: Mapping[str, OncePerSample],
    numbers: Mapping[str, float],
    limits: str,
) -> str:
    steps = "\n".join(
        f"- {name}: {training.steps:,} steps, {training.samples:,} samples, none of them twice; {training.optimizer}, learning "
        f"rate {training.learning_rate:g}"
        for name, training in trainings.items()
    )
    table = "\n".join(f"| {name} | {value:.1f} |" for name, value in numbers.items())
    return f"""---
license: other
pipeline_tag: {task}
---

# {title}

{what}

## Data

It was trained on {data} All are drawn afresh. {100 * RESERVED_SHARE:g} % of all combinations of attributes, chosen by a fixed hash,
are reserved for evaluation: it has seen none of them, whatever the seed of the set that it is evaluated on.

## Training

{steps}
- seed {{seed}}
- revision: `{{made_by}}`, which names code, recipe, packages and number of threads (tag `pipelines.fingerprint` in MLflow)

## Metrics

On people of reserved combinations, drawn clean:

| | |
|---|---:|
{table}

## Limits

{{limits}} {limits}

## Licence

{{licence}}
"""


def _weights(presets: Mapping[Preset, float]) -> str:
    total = sum(presets.values())
    return "drawn " + ", ".join(f"{name} ({100 * share / total:.0f} %)" for name, share in presets.items())
