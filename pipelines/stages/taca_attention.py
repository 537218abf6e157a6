"""Measure how much of the image's attention goes to the text, per layer and sampler step, with and without TACA.

The base model is not trained. The prompts are some of the evaluation prompts, with the noise of `taca_generate`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from components.evaluation.intervals import bootstrap_difference
from components.persons.prompts import dataset_prompts
from components.persons.shards import PersonDataset
from components.taca.diagnostics import TextMass, measure_text_mass
from components.taca.generation import Arm, apply_arm, schedule_for_pictures
from components.taca.offloading import place
from components.taca.reference import DTYPES, load_base
from components.training.randomness import stream_seed
from pipelines.engine.context import StageContext
from pipelines.params import Parameters


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings, people = params.taca_generate, PersonDataset(inputs["people"])
    evaluation = dataset_prompts(people, "test", settings.prompts)
    # Evenly spaced: neighbours are pictures of one person.
    asked = evaluation[:: max(1, len(evaluation) // params.taca_attention.prompts)][: params.taca_attention.prompts]

    size: dict[str, Any] = {"height": params.pictures.height, "width": params.pictures.width}
    pipe = load_base(inputs["base"], dtype=DTYPES[settings.base_dtype], quantize=settings.quantize)
    place(pipe, context.device, context.offload)
    schedule = schedule_for_pictures(pipe, params.taca, steps=settings.steps, **size)
    measured = {}
    for name, arm in (("base", Arm()), ("taca", Arm(schedule=schedule))):
        with apply_arm(pipe, arm):
            measured[name] = measure_text_mass(
                pipe,
                [prompt.text for prompt in asked],
                [stream_seed(params.seed, "picture", prompt.caption_id) for prompt in asked],
                steps=settings.steps,
                embedded_guidance=settings.embedded_guidance,
                batch_size=settings.batch,
                **size,
            )
    tables = [
        pa.table({"arm": [name] * mass.mass.numel(), **mass.columns([prompt.image_id for prompt in asked])})
        for name, mass in measured.items()
    ]
    pq.write_table(pa.concat_tables(tables), outputs["attention"], compression="none")
    base, taca = measured["base"], measured["taca"]
    return {
        "prompts": len(asked),
        "steps": len(taca.sigma),
        "active_steps": int(taca.active.any(1).sum()),
        "text_tokens": taca.text_tokens,
        "image_tokens": taca.image_tokens,
        "uniform_share": 100 * taca.uniform_share,
        **compare(base, taca, taca.active, params.seed),
        "layer": {
            name.replace(" ", "_"): compare(base, taca, only(taca.active, layer), params.seed)
            for layer, name in enumerate(taca.layers)
        },
    }


def compare(base: TextMass, taca: TextMass, where: Tensor, seed: int) -> dict[str, Any]:
    """Return both text masses in percent, over the calls and layers in `where` (K, L), and their paired difference over prompts."""
    if not where.any():
        return {}
    off, on = (100 * measured.mass[:, where].double().mean(1) for measured in (base, taca))  # (N,)
    difference = bootstrap_difference(on.numpy(), off.numpy(), seed=seed)
    return {"base": off.mean().item(), "taca": on.mean().item(), "difference": difference.as_dict()}


def only(active: Tensor, layer: int) -> Tensor:
    """Return `active` (K, L) restricted to one layer."""
    kept = active.clone()
    kept[:, :layer] = kept[:, layer + 1 :] = False
    return kept
