"""Draw people for prompts: evaluation prompts (test split) and a corpus (train split) for retrieval to learn from.

Every arm has the same prompts and the same noise. The result is a dataset folder: split "val" holds the evaluation pictures,
their `source` naming the guidance; split "train" the corpus, each picture with the long captions of the one whose prompt it has.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from components.evaluation.figures import plate, save_png
from components.persons.png import encode_png
from components.persons.prompts import Prompt, prompts
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset
from components.taca.generation import Arm, apply_arm, generate
from components.taca.reference import load_base
from components.taca.schedule import TemperatureSchedule
from components.training.randomness import stream_seed
from pipelines.context import StageContext
from pipelines.params import Parameters

CORPUS_ARM = "taca_lora"
SHOWN, SHOWN_IN_A_ROW = 40, 10
"""Pictures of each set on the sheet that the tracking server shows."""


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings, people = params.taca_generate, PersonDataset.open(inputs["people"])
    schedule = TemperatureSchedule(gamma=params.taca.gamma, threshold=params.taca.threshold)
    arm = Arm(
        adapter=inputs.get("adapter"),
        schedule=schedule if context.arm in ("taca", "taca_lora") else None,
        adapter_threshold=schedule.threshold,
    )
    evaluation = prompts(people, "test", settings.prompts)
    wanted = [("val", f"guidance {scale:g}", scale, evaluation) for scale in settings.guidance]
    if context.arm == CORPUS_ARM:
        wanted.append(("train", "corpus", settings.corpus_guidance, prompts(people, "train", settings.corpus)))

    pipe = load_base(inputs["base"]).to(context.device)
    with apply_arm(pipe, arm), DatasetWriter(outputs["generated"]) as writer:
        for split, source, scale, asked in wanted:
            pictures = _draw(pipe, asked, scale, source, params, context)
            save_png(
                plate([list(row) for row in pictures[:SHOWN].split(SHOWN_IN_A_ROW)]), context.figures / f"{source}.png"
            )
            for picture, prompt in zip(pictures, asked, strict=True):
                writer.add(
                    encode_png(picture),
                    [CaptionRow(prompt.text, "short"), *(prompt.captions if split == "train" else ())],
                    identity=prompt.image_id,
                    split=split,
                    source=source,
                    attributes=prompt.attributes,
                )
    sigmas = pipe.scheduler.sigmas[:-1]
    return {
        "pictures": sum(len(asked) for *_, asked in wanted),
        "active_steps": schedule.active_steps(sigmas) if arm.schedule else 0,
        "steps": len(sigmas),
    }


def _draw(
    pipe: Any, asked: list[Prompt], guidance: float, phase: str, params: Parameters, context: StageContext
) -> torch.Tensor:
    """Pictures for all prompts, batch by batch, going on after a kill where the last saved batch ended."""
    settings, here = params.taca_generate, context.phase(phase.replace(" ", "-"))
    loaded = here.load()
    pictures = [loaded[1]["pictures"]] if loaded else []
    done = loaded[0] if loaded else 0
    for start in range(done, len(asked), settings.batch):
        part = asked[start : start + settings.batch]
        pictures.append(
            generate(
                pipe,
                [prompt.text for prompt in part],
                [stream_seed(params.seed, "picture", prompt.caption_id) for prompt in part],
                height=params.pictures.height,
                width=params.pictures.width,
                steps=settings.steps,
                guidance=guidance,
                batch_size=settings.batch,
            )
        )
        here.save({"pictures": torch.cat(pictures)}, start + len(part))
    return torch.cat(pictures)
