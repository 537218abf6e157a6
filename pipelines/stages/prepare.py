"""Convert a source of people (drawn here, or a published set in data/raw) to the internal form, and validate it."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.gadms.tokenizer import CaptionTokenizer
from components.persons.drawn.config import DrawnConfig
from components.persons.drawn.dataset import write_drawn_dataset
from components.persons.published.readers import find_dataset
from components.persons.published.validation import ValidatedRecords
from components.persons.records import SPLITS
from components.persons.shards import DATASET_MANIFEST, write_records
from components.persons.statistics import manifest_statistics
from pipelines.engine.context import StageContext
from pipelines.params import Parameters
from pipelines.stages.parts.cut_captions import print_cut


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    settings = params.prepare
    with tempfile.TemporaryDirectory() as scratch:
        name, root = settings.source, inputs["raw"]
        if settings.source == "drawn":
            name, root = "cuhk-pedes", Path(scratch)
            config = DrawnConfig(
                height=params.pictures.height,
                width=params.pictures.width,
                train_identities=settings.identities["train"],
                val_identities=settings.identities["val"],
                test_identities=settings.identities["test"],
                images_per_identity=settings.pictures_per_identity,
                preset=settings.preset,
                noise_rate=settings.caption_noise,
                near_duplicates=settings.neighbours,
                reserve=settings.reserve,
            )
            write_drawn_dataset(root / "CUHK-PEDES", config, params.seed)
        validation = ValidatedRecords(find_dataset(name, root), max_bad_fraction=settings.max_bad_fraction)
        write_records(validation, outputs["people"])  # one record at a time: a set may have millions
        report = validation.report
    report.write(outputs["people"])
    for line in (*report.summary(), *(f"no {split} split" for split in SPLITS if split not in report.splits)):
        print(f"{settings.source}: {line}", flush=True)
    statistics = manifest_statistics(outputs["people"] / DATASET_MANIFEST, CaptionTokenizer().is_cut)
    for split, counts in statistics.items():
        print_cut(counts["captions_cut"], counts["captions"], f"captions of the {split} split")
    return {
        "records": report.total,
        "kept": report.good,
        "bad": dict(sorted(report.counts.items())),
        "joined": dict(sorted(report.joined.items())),
        "left_out": report.left_out,
        **statistics,
    }
