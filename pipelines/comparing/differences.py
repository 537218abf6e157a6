"""The differences between runs: parameters, metrics, and paired tests on the same prompts or queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from components.errors import DataError
from components.evaluation.comparison import (
    alignment_differences,
    alignment_scores,
    retrieval_differences,
    retrieval_hits,
)
from components.evaluation.intervals import Interval, bootstrap_difference
from components.persons.shards import PersonDataset
from pipelines.comparing.people import People, folder_of, require_same_people, same_people
from pipelines.comparing.runs import PEOPLE, ComparedRun

COST = ("cost/", "system/")
RANKS = (1, 5, 10)
Tables = Mapping[str, dict[str, list[Any]]]
"""Run id -> the columns of its results."""


@dataclass(frozen=True)
class PairedTest:
    """A measure on the same items in every run, and the difference of each run to the first with its 95 % interval."""

    stage: str
    measure: str
    unit: str
    """The independent unit that was resampled: prompt, identity or picture."""
    items: int
    """The number of prompts or queries."""
    means: Sequence[float]
    differences: Sequence[Interval | None]
    """None for the first run."""


@dataclass(frozen=True)
class Comparison:
    """The differences between `runs`, of which the first is the baseline."""

    runs: Sequence[ComparedRun]
    parameters: Sequence[tuple[str, list[str | None]]]
    metrics: Sequence[tuple[str, str, list[float | None]]]
    cost: Sequence[tuple[str, str, list[float | None]]]
    paired: Sequence[PairedTest]
    not_paired: Sequence[str]
    """One line for each stage whose results could not be paired."""
    notes: Sequence[str]
    """One line for each stage whose people are not those in the workspace (`without_people`)."""


def compare_runs(runs: Sequence[ComparedRun], people: People | None) -> Comparison:
    """Compute all differences; arguments as of `paired_tests`."""
    paired, not_paired = paired_tests(runs, people)
    metrics, cost = metric_table(runs, cost=False), metric_table(runs, cost=True)
    return Comparison(
        runs, parameter_differences(runs), metrics, cost, paired, not_paired, without_people(runs, people)
    )


def common_stages(runs: Sequence[ComparedRun]) -> list[str]:
    """Stages that every run has, in the order of the first."""
    return [key for key in runs[0].stages if all(key in run.stages for run in runs)]


def parameter_differences(runs: Sequence[ComparedRun]) -> list[tuple[str, list[str | None]]]:
    """(key, its value in each run or None) of the parameters that are not the same in all runs."""
    parameters = []
    for run in runs:
        merged: dict[str, str] = dict(run.params)
        for key in common_stages(runs):
            merged.update(run.stages[key].params)
        parameters.append(merged)
    keys = sorted({key for merged in parameters for key in merged})
    rows = [(key, [merged.get(key) for merged in parameters]) for key in keys]
    return [row for row in rows if len(set(row[1])) > 1]


def metric_table(runs: Sequence[ComparedRun], *, cost: bool) -> list[tuple[str, str, list[float | None]]]:
    """(stage, metric, its value in each run) of the metrics that are not the same in all runs: results, or with `cost` costs.

    Values over steps ("train/loss") are left out: the page shows them as curves.
    """
    rows = []
    of_runs = {"": [dict(run.metrics) for run in runs]}
    of_stages = {key: [dict(run.stages[key].metrics) for run in runs] for key in common_stages(runs)}
    for stage, metrics in {**of_runs, **of_stages}.items():
        for name in sorted({name for each in metrics for name in each}):
            if name.startswith(COST) is not cost or ("/" in name and not cost):
                continue
            values = [each.get(name) for each in metrics]
            if len(set(values)) > 1:
                rows.append((stage, name, values))
    return rows


def paired_tests(
    runs: Sequence[ComparedRun], people: People | None, seed: int = 0
) -> tuple[list[PairedTest], list[str]]:
    """The paired tests of all stages with results per prompt or query, and a line for each stage that could not be paired.

    people: of the workspace, for the identities of captions. Where they are not those that were searched, a unit is the queries of
    one picture.
    """
    found: list[PairedTest] = []
    not_paired: list[str] = []
    for key in common_stages(runs):
        for name, test in (("alignment", _alignment), ("ranks", _retrieval)):
            files = [run.stages[key].output(name) for run in runs]
            if not any(files):
                continue
            try:
                tables = _tables(key, files, runs)
                require_same_people(runs, key)
                found += test(key, tables, folder_of(people, runs[0], key), seed)
            except DataError as error:
                not_paired.append(f"{key}: not paired: {error}")
    return found, not_paired


def without_people(runs: Sequence[ComparedRun], people: People | None) -> list[str]:
    """A line for each stage whose queries are paired without the identities, captions and pictures of its people."""
    return [
        f"{key}: {PEOPLE} of this workspace is not what these runs searched: intervals are by picture, and queries are shown "
        "without captions and pictures"
        for key in common_stages(runs)
        if all(run.stages[key].output("ranks") for run in runs)
        and same_people(runs, key)
        and folder_of(people, runs[0], key) is None
    ]


def _tables(key: str, files: Sequence[Path | None], runs: Sequence[ComparedRun]) -> Tables:
    tables = {}
    for run, file in zip(runs, files, strict=True):
        if file is None:
            raise DataError(f"the outputs of {key} of run {run.run_id[:8]} are no longer in the scratch root")
        tables[run.run_id] = pq.read_table(file).to_pydict()
    return tables


def _alignment(key: str, tables: Tables, people: Path | None, seed: int) -> list[PairedTest]:
    first, *_ = tables
    sources = sorted(set.intersection(*(set(table["source"]) for table in tables.values())))
    found = []
    for source in sources:
        differences = alignment_differences(tables, first, source, seed)
        prompts, _ = alignment_scores(tables[first], source)
        means = [float(np.nanmean(100 * alignment_scores(table, source)[1].per_picture())) for table in tables.values()]
        intervals = [None if run == first else differences[run]["mean"] for run in tables]
        found.append(PairedTest(key, f"alignment, {source}", "prompt", len(prompts), means, intervals))
    return found


def _retrieval(key: str, tables: Tables, people: Path | None, seed: int) -> list[PairedTest]:
    first, *_ = tables
    queries = tables[first]["caption_id"]
    identities = identities_of(people, queries)
    unit = "identity" if identities else "picture"
    units = identities or dict(zip(queries, tables[first]["image_id"], strict=True))
    found = []
    for k in RANKS:
        differences = retrieval_differences(tables, first, units, seed, k)
        means = [float(np.nanmean(retrieval_hits(table, k))) for table in tables.values()]
        intervals = [None if run == first else differences[run] for run in tables]
        found.append(PairedTest(key, f"R@{k}", unit, len(queries), means, intervals))
    precision = [100 * np.asarray(table["average_precision"], dtype=np.float64) for table in tables.values()]
    owner = [units[query] for query in queries]
    intervals = [None, *(bootstrap_difference(each, precision[0], units=owner, seed=seed) for each in precision[1:])]
    found.append(PairedTest(key, "mAP", unit, len(queries), [float(np.nanmean(p)) for p in precision], intervals))
    return found


def identities_of(people: Path | None, captions: Sequence[int]) -> dict[int, int]:
    """caption_id -> identity, from the data set at `people`; {} without one."""
    if people is None:
        return {}
    rows = PersonDataset(people).rows(form="long")
    known = dict(zip(rows.column("caption_id"), rows.column("identity"), strict=True))
    return {caption: known[caption] for caption in captions}
