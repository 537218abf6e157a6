"""Draw people for prompts: evaluation prompts (test split), and a corpus (train split) for retrieval pre-training.

Every arm has the same prompts and the same noise. The result is a dataset folder: split "val" holds the evaluation pictures,
their `source` naming the guidance; split "train" the corpus, each picture with the long captions of the one whose prompt it has.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from components.evaluation.figures import contact_sheet, save_png
from components.persons.pixels import encode_png
from components.persons.prompts import DatasetPrompt, dataset_prompts
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset
from components.taca.generation import Adapter, Arm, active_steps, apply_arm, generate, schedule_for_pictures
from components.taca.offloading import place, require_offloading
from components.taca.quantization import require_quantizable
from components.taca.reference import DTYPES, load_base
from components.training.randomness import stream_seed
from pipelines.engine.context import StageContext
from pipelines.params import Parameters

CORPUS_ARM = "taca_lora"
SHOWN, SHOWN_IN_A_ROW = 40, 10
"""Pictures per set, and per row, on the contact sheet in MLflow."""


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings, people = params.taca_generate, PersonDataset(inputs["people"])
    size: dict[str, Any] = {"height": params.pictures.height, "width": params.pictures.width}
    require_offloading(context.offload, context.device)
    require_quantizable(settings.quantize, DTYPES[settings.base_dtype], context.offload)
    pipe = load_base(inputs["base"], dtype=DTYPES[settings.base_dtype], quantize=settings.quantize)
    schedule = schedule_for_pictures(pipe, params.taca, steps=settings.steps, **size)
    adapter = Adapter(inputs["adapter"], threshold=schedule.active_from) if "adapter" in inputs else None
    arm = Arm(adapter, schedule if context.arm in ("taca", "taca_lora") else None)
    evaluation = dataset_prompts(people, "test", settings.prompts)
    wanted = [("val", f"guidance {scale:g}", scale, evaluation) for scale in settings.guidance]
    if context.arm == CORPUS_ARM:
        wanted.append(("train", "corpus", settings.corpus_guidance, dataset_prompts(people, "train", settings.corpus)))

    with apply_arm(pipe, arm), DatasetWriter(outputs["generated"]) as writer:
        place(pipe, context.device, context.offload)
        for split, source, scale, asked in wanted:
            shown: list[torch.Tensor] = []
            for part, pictures in _drawn(pipe, asked, scale, source, params, context):
                shown += pictures[: SHOWN - len(shown)]
                for picture, prompt in zip(pictures, part, strict=True):
                    writer.add(
                        encode_png(picture),
                        [CaptionRow(prompt.text, "short"), *(prompt.captions if split == "train" else ())],
                        identity=prompt.image_id,
                        split=split,
                        source=source,
                        attributes=prompt.attributes,
                    )
            rows = [shown[i : i + SHOWN_IN_A_ROW] for i in range(0, len(shown), SHOWN_IN_A_ROW)]
            save_png(contact_sheet(rows), context.figures / f"{source}.png")
    return {
        "pictures": sum(len(asked) for *_, asked in wanted),
        "active_steps": active_steps(pipe, schedule, steps=settings.steps, **size) if arm.schedule else 0,
        "steps": settings.steps,
    }


def _drawn(
    pipe: Any, asked: list[DatasetPrompt], guidance: float, source: str, params: Parameters, context: StageContext
) -> Iterator[tuple[list[DatasetPrompt], torch.Tensor]]:
    """Yield prompts with their pictures, batch by batch. Each batch is a checkpoint of its own, so that a resumed run draws only
    what is missing, and a corpus of any size is written once and never held in memory."""
    settings = params.taca_generate
    for start in range(0, len(asked), settings.batch):
        part = asked[start : start + settings.batch]
        here = context.phase(f"{source.replace(' ', '-')}/{start:07d}", quiet=True)
        if loaded := here.load():
            pictures = loaded[1]["pictures"]
        else:
            pictures = generate(
                pipe,
                [prompt.text for prompt in part],
                [stream_seed(params.seed, "picture", prompt.caption_id) for prompt in part],
                height=params.pictures.height,
                width=params.pictures.width,
                steps=settings.steps,
                guidance=guidance,
                embedded_guidance=settings.embedded_guidance,
                negative_prompts=[settings.negative_prompt] * len(part) if guidance > 1 else None,
                batch_size=settings.batch,
            )
            here.save({"pictures": pictures}, len(part))
        yield part, pictures
