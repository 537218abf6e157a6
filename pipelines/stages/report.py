"""Collect every metric, curve and result in one report, and the pictures that it shows.

`reports/report.json` is a result like any other: it holds no clock, address, revision or duration. `python -m pipelines report`
makes the page from it, and adds what the tracking server knows.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components.evaluation.comparison import alignment_differences
from components.files import write_atomically
from components.persons.shards import PersonDataset
from pipelines.engine.context import StageContext
from pipelines.graph import GADMS_ARMS, METHODS, STAGES, TACA_ARMS, runs_of
from pipelines.params import Parameters
from pipelines.stages.parts.report_attention import attention_section
from pipelines.stages.parts.report_checks import checks
from pipelines.stages.parts.report_pictures import Album, curation_examples, people, queries
from pipelines.stages.parts.report_retrieval import breakdown_section, heatmaps, retrieval_section

BASELINE = "base"
DIGITS = 6


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    runs = [run for stage in STAGES for run in runs_of(stage)]
    metrics = {run.address: json.loads(inputs[run.metrics].read_text()) for run in runs}
    alignment = {arm: columns(inputs[f"results/alignment/{arm}.parquet"]) for arm in TACA_ARMS}
    ranks = {arm: columns(inputs[f"results/retrieval/{arm}.parquet"]) for arm in GADMS_ARMS}
    real = PersonDataset(inputs["people"])
    album = Album(outputs["figures"], context.figures, params.pictures.height, params.pictures.width)
    checked = checks(metrics)
    report = {
        "setting": {"seed": params.seed, "height": params.pictures.height, "width": params.pictures.width},
        "alignment": alignment_section(metrics, alignment, params.seed),
        "attention": attention_section(metrics["taca_attention"], columns(inputs["results/attention.parquet"])),
        "retrieval": retrieval_section(metrics, ranks, real, params.seed),
        "breakdown": breakdown_section(ranks, real, params.seed),
        "people": people(album, real, inputs, alignment, params.report.people),
        "queries": queries(album, real, inputs["model"], inputs["index"], params.report.queries),
        "heatmaps": heatmaps(album, real, columns(inputs["results/scores/gadms.parquet"]), params.report.heatmaps),
        "curation": {
            **metrics["curate"],
            "examples": curation_examples(album, inputs["curated"], inputs["generated/taca_lora"]),
        },
        "parity": {method: parity(inputs[f"results/parity/{method}.csv"]) for method in METHODS},
        "curves": {run.address: read_csv(inputs[run.curves]) for run in runs if run.curves},
        "checks": checked,
        "metrics": metrics,
    }
    write_atomically(outputs["report"], to_text(report))
    decided = [check["met"] for check in checked if check["met"] is not None]
    return {"checks": len(decided), "checks_met": sum(decided)}


def alignment_section(metrics: Mapping[str, Any], tables: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return, by source, each arm's means, attributes and paired difference to the base arm."""
    section = {}
    for source in sorted(set(tables[BASELINE]["source"])):
        differences = alignment_differences(tables, BASELINE, source, seed)
        arms = {}
        for arm in tables:
            own = dict(metrics[f"taca_evaluate@{arm}"][source.replace(" ", "_")])
            if arm in differences:
                own["difference"] = {name: interval.as_dict() for name, interval in differences[arm].items()}
            arms[arm] = own
        section[source] = {"prompts": tables[BASELINE]["source"].count(source), "arms": arms}
    return section


def parity(path: Path) -> dict[str, Any]:
    """Return the two loss curves of the same training, and their largest relative difference."""
    curves = read_csv(path)
    step = curves.pop("step")
    local = curves.pop("local")
    ((name, distributed),) = curves.items()
    worst = max(abs(a - b) / abs(a) for a, b in zip(local, distributed, strict=True))
    return {
        "step": step,
        "local": local,
        "distributed": distributed,
        "name": name,
        "largest_relative_difference": worst,
    }


def columns(path: Path) -> dict[str, list[Any]]:
    """Read a Parquet file as lists by column."""
    return pq.read_table(path).to_pydict()


def read_csv(path: Path) -> dict[str, list[Any]]:
    """Read a table of numbers as lists by column; an empty cell is None, a column "step" holds integers."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        name: [int(row[name]) if name == "step" else float(row[name]) if row[name] else None for row in rows]
        for name in (rows[0] if rows else ())
    }


def to_text(report: Any) -> str:
    """Return JSON with sorted keys and floats of 6 significant digits; a float that is not finite becomes null."""
    return json.dumps(_rounded(report), indent=1, sort_keys=True, allow_nan=False) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        finite = value == value and abs(value) != float("inf")
        return float(f"{value:.{DIGITS}g}") if finite else None
    return value
