"""Leaderboards of published text-to-person retrieval results, with own results added.

The numbers and their sources are in `published_retrieval.yaml` beside this file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.errors import DataError, ParameterError
from components.persons.published.layouts import LAYOUTS

PUBLISHED = Path(__file__).with_name("published_retrieval.yaml")
DATASETS = ("cuhk-pedes", "icfg-pedes", "rstpreid")
SETTINGS = ("fine-tuned", "direct transfer")
METRICS = ("R@1", "R@5", "R@10", "mAP", "mINP")
COMPUTED_HERE = "computed here"


@dataclass(frozen=True)
class Result:
    """One method on one dataset.

    Attributes:
        venue, pretraining: None where there is none, or none is stated.
        metrics: the stated ones of METRICS, in percent.
        source: where the numbers are from; of an own result also how its test split differs from the published one.
        own: whether it was computed here.
    """

    method: str
    venue: str | None
    dataset: str
    setting: str
    pretraining: str | None
    metrics: Mapping[str, float]
    source: str
    own: bool = False

    @property
    def is_comparable(self) -> bool:
        """Whether it was measured on the published test split, as far as is known."""
        return not self.own or self.source == COMPUTED_HERE


def published_results(path: Path = PUBLISHED) -> list[Result]:
    """Read every published result, one per method and dataset. Raises DataError for a malformed entry."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    found = []
    for entry in entries:
        for dataset, values in entry["results"].items():
            found.append(_result(entry, dataset, values, path))
    return found


def leaderboard(
    dataset: str, setting: str = "fine-tuned", own: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Result]:
    """Return results on a dataset in one setting by falling R@1, including `own` (name -> metrics in percent).

    Of `own` these keys are read besides METRICS: `dataset`, which has to be this one; `queries`, `queries_without_match` and
    `gallery`, which are compared with the published numbers of captions and pictures; `left_out`, which validation left out. The
    source of a result on another test split says so.

    Raises:
        ParameterError: an unknown dataset or setting, or own results without R@1 or on another dataset.
    """
    if dataset not in DATASETS or setting not in SETTINGS:
        raise ParameterError(
            f"leaderboard of {dataset!r}, {setting!r}: datasets are {', '.join(DATASETS)}; settings {', '.join(SETTINGS)}"
        )
    rows = [result for result in published_results() if (result.dataset, result.setting) == (dataset, setting)]
    for name, metrics in (own or {}).items():
        stated = {metric: float(metrics[metric]) for metric in METRICS if metric in metrics}
        if "R@1" not in stated:
            raise ParameterError(
                f"leaderboard: own results {name!r} have no R@1, but {', '.join(metrics) or 'nothing'}"
            )
        if (measured_on := metrics.get("dataset", dataset)).lower() != dataset:
            raise ParameterError(f"leaderboard of {dataset!r}: own results {name!r} are on {measured_on!r}")
        source = ", ".join((COMPUTED_HERE, *_split_differences(dataset, metrics)))
        rows.append(Result(name, None, dataset, setting, None, stated, source, own=True))
    return sorted(rows, key=lambda result: -result.metrics["R@1"])


def _split_differences(dataset: str, metrics: Mapping[str, Any]) -> list[str]:
    """Return how the test split of own results differs from the published one."""
    published = LAYOUTS[dataset].published["test"]
    queries = metrics.get("queries")
    counts = {
        "captions": (published.captions, queries and queries + metrics.get("queries_without_match", 0)),
        "pictures": (published.images, metrics.get("gallery")),
    }
    found = [
        f"{int(own):,} {what} (published {stated:,})"
        for what, (stated, own) in counts.items()
        if own not in (None, stated)
    ]
    left_out = [f"{number:,} {what} left out" for what, number in (metrics.get("left_out") or {}).items() if number]
    return ["on another test split", *found, *left_out] if found or left_out else []


def _result(entry: Mapping[str, Any], dataset: str, values: list[float | None], path: Path) -> Result:
    where = f"{path.name}: {entry.get('method')} on {dataset}"
    if dataset not in DATASETS or entry.get("setting") not in SETTINGS or not entry.get("source"):
        raise DataError(f"{where}: unknown dataset or setting, or no source")
    if len(values) != len(METRICS) or values[0] is None:
        raise DataError(f"{where}: {values}; expected {', '.join(METRICS)}, with R@1 not null")
    metrics = {name: float(value) for name, value in zip(METRICS, values, strict=True) if value is not None}
    return Result(
        method=entry["method"],
        venue=entry["venue"],
        dataset=dataset,
        setting=entry["setting"],
        pretraining=entry["pretraining"],
        metrics=metrics,
        source=entry["source"],
    )
