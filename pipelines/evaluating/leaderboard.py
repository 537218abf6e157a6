"""Prints published results of person retrieval, with the results of this workspace where they are comparable."""

import json
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from components.evaluation.leaderboard import DATASETS, METRICS, SETTINGS, Result, leaderboard
from pipelines.graph import GADMS_ARMS
from pipelines.terminal.console import TableConsole
from pipelines.workspace import Workspace

EVALUATED = "metrics/gadms_evaluate/{arm}.json"


def show_leaderboards(workspace: Workspace, dataset: str | None = None, setting: str = SETTINGS[0]) -> None:
    """Print the table of one dataset, or of each. Raises ParameterError for an unknown one."""
    console, own = TableConsole(), own_results(workspace)
    for name in (dataset,) if dataset else DATASETS:
        # Models of the pipeline are fine-tuned on the train split of the set that they are tested on.
        here = {arm: row for arm, row in own.items() if _dataset_of(row) == name and setting == "fine-tuned"}
        _show(name, leaderboard(name, setting, here), console)
    console.print(_remark(own), style="dim", highlight=False)


def own_results(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Arm -> its metrics on the test split, for the arms that have results."""
    paths = {arm: workspace.path(EVALUATED.format(arm=arm)) for arm in GADMS_ARMS}
    return {arm: json.loads(path.read_text(encoding="utf-8")) for arm, path in paths.items() if path.is_file()}


def _dataset_of(metrics: Mapping[str, Any]) -> str:
    """The data set that a result states it was measured on, in lower case; empty where it states none."""
    return str(metrics.get("dataset", "")).lower()


def _remark(own: Mapping[str, Mapping[str, Any]]) -> str:
    remarks = [
        "Published numbers are mostly of the best epoch on the test set; those of this workspace are of the best on val."
    ]
    if not own:
        remarks.append("This workspace has no results.")
    others: dict[str, list[str]] = {}
    for arm, metrics in own.items():
        others.setdefault(_dataset_of(metrics), []).append(f"{arm} {metrics['R@1']:.1f}")
    for dataset, results in others.items():
        listed = f"R@1 {', '.join(results)}"
        if not dataset:
            remarks.append(
                f"Results that do not state their data set are left out: {listed}; run gadms_evaluate again."
            )
        elif dataset not in DATASETS:
            remarks.append(f"This workspace's results are on {dataset!r} and cannot be compared with these: {listed}.")
    return " ".join(remarks)


def _show(dataset: str, rows: list[Result], console: TableConsole) -> None:
    sources = list(dict.fromkeys(row.source for row in rows if not row.own))
    table = Table(title=f"{dataset}: {rows[0].setting}", title_justify="left")
    table.add_column("method + what it was pre-trained on", overflow="fold")
    for heading in (*METRICS, "from"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        name = f"{row.method} + {row.pretraining}" if row.pretraining else row.method
        numbers = [f"{row.metrics[metric]:.2f}" if metric in row.metrics else "" for metric in METRICS]
        origin = ("here" if row.is_comparable else "here *") if row.own else str(sources.index(row.source) + 1)
        label = escape(", ".join(filter(None, (name, row.venue))))
        table.add_row(label, *numbers, origin, style="bold" if row.own else None)
    console.print(table)
    for number, source in enumerate(sources, 1):
        console.print(f"{number:2}  {source}", markup=False, highlight=False, soft_wrap=True)
    for row in rows:
        if not row.is_comparable:
            console.print(f" *  {row.method}: {row.source}", markup=False, highlight=False, soft_wrap=True)
    console.print()
