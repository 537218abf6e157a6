"""What differs between runs: parameters, metrics, and paired tests on the same prompts or queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.errors import DataError
from components.evaluation.comparison import alignment_differences, retrieval_differences
from components.evaluation.intervals import Interval, bootstrap_difference
from pipelines.comparing.sides import Side

COST = ("cost/", "system/")
RANKS = (1, 5, 10)


@dataclass(frozen=True)
class Paired:
    """One measure on the same things in every run, and each run's difference to the first, with a 95 % interval."""

    stage: str
    measure: str
    unit: str
    """What was resampled: prompt, identity or picture."""
    things: int
    means: Sequence[float]
    differences: Sequence[Interval | None]
    """None for the first run."""


def common_stages(sides: Sequence[Side]) -> list[str]:
    """Stages that every run has, in the order of the first."""
    return [key for key in sides[0].stages if all(key in side.stages for side in sides)]


def parameter_differences(sides: Sequence[Side]) -> list[tuple[str, list[str | None]]]:
    """(key, its value in each run, None where it has none) of the parameters that are not the same in all."""
    known = []
    for side in sides:
        merged: dict[str, str] = dict(side.params)
        for key in common_stages(sides):
            merged.update(side.stages[key].params)
        known.append(merged)
    keys = sorted({key for merged in known for key in merged})
    rows = [(key, [merged.get(key) for merged in known]) for key in keys]
    return [row for row in rows if len(set(row[1])) > 1]


def metric_table(sides: Sequence[Side], *, cost: bool) -> list[tuple[str, str, list[float | None]]]:
    """(stage, metric, its value in each run) of results, or of what they cost; metrics that are the same in all are left out.

    Values over steps ("train/loss") are left to the curves.
    """
    rows = []
    of_runs = {"": [dict(side.metrics) for side in sides]}
    of_stages = {key: [dict(side.stages[key].metrics) for side in sides] for key in common_stages(sides)}
    for stage, metrics in {**of_runs, **of_stages}.items():
        for name in sorted({name for each in metrics for name in each}):
            if name.startswith(COST) is not cost or ("/" in name and not cost):
                continue
            values = [each.get(name) for each in metrics]
            if len(set(values)) > 1:
                rows.append((stage, name, values))
    return rows


def paired_tests(sides: Sequence[Side], people: Path | None, seed: int = 0) -> tuple[list[Paired], list[str]]:
    """Paired differences wherever every run kept results of single prompts or queries, and why some could not be paired.

    `people`: the data set that was searched, for the identities of its captions; without it queries of one picture are a unit.
    """
    found: list[Paired] = []
    trouble: list[str] = []
    for key in common_stages(sides):
        for name, test in (("alignment", _alignment), ("ranks", _retrieval)):
            files = [side.stages[key].output(name) for side in sides]
            if not any(files):
                continue
            try:
                found += test(key, _tables(key, files, sides), people, seed)
            except DataError as error:
                trouble.append(f"{key}: not paired: {error}")
    return found, trouble


def _tables(key: str, files: Sequence[Path | None], sides: Sequence[Side]) -> dict[str, dict[str, list[Any]]]:
    import pyarrow.parquet as pq

    tables = {}
    for side, file in zip(sides, files, strict=True):
        if file is None:
            raise DataError(f"the outputs of {key} of run {side.run_id[:8]} are no longer in the scratch root")
        tables[side.run_id] = pq.read_table(file).to_pydict()
    return tables


def _alignment(key: str, tables: Mapping[str, dict[str, list[Any]]], people: Path | None, seed: int) -> list[Paired]:
    from components.evaluation.comparison import alignment_scores

    first, *_ = tables
    sources = sorted(set.intersection(*(set(table["source"]) for table in tables.values())))
    found = []
    for source in sources:
        differences = alignment_differences(tables, first, source, seed)
        prompts, _ = alignment_scores(tables[first], source)
        means = [float(np.nanmean(100 * alignment_scores(table, source)[1].per_picture())) for table in tables.values()]
        intervals = [None if run == first else differences[run]["mean"] for run in tables]
        found.append(Paired(key, f"alignment, {source}", "prompt", len(prompts), means, intervals))
    return found


def _retrieval(key: str, tables: Mapping[str, dict[str, list[Any]]], people: Path | None, seed: int) -> list[Paired]:
    first, *_ = tables
    queries = tables[first]["caption_id"]
    identities = identities_of(people, queries)
    unit = "identity" if identities else "picture"
    units = identities or dict(zip(queries, tables[first]["image_id"], strict=True))
    found = []
    for k in RANKS:
        differences = retrieval_differences(tables, first, units, seed, k)
        means = [100 * float(np.mean([1 <= rank <= k for rank in table["first_rank"]])) for table in tables.values()]
        intervals = [None if run == first else differences[run] for run in tables]
        found.append(Paired(key, f"R@{k}", unit, len(queries), means, intervals))
    precision = [100 * np.asarray(table["average_precision"], dtype=np.float64) for table in tables.values()]
    owner = [units[query] for query in queries]
    intervals = [None, *(bootstrap_difference(each, precision[0], units=owner, seed=seed) for each in precision[1:])]
    found.append(Paired(key, "mAP", unit, len(queries), [float(np.nanmean(p)) for p in precision], intervals))
    return found


def identities_of(people: Path | None, captions: Sequence[int]) -> dict[int, int]:
    """caption_id -> identity, from the data set at `people`; {} unless it knows every one of `captions`."""
    if people is None or not people.is_dir():
        return {}
    from components.persons.shards import PersonDataset

    rows = PersonDataset.open(people).rows(form="long")
    known = dict(zip(rows.column("caption_id"), rows.column("identity"), strict=True))
    return {caption: known[caption] for caption in captions} if set(captions) <= set(known) else {}
