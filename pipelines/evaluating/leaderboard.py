"""Prints published results of person retrieval, with the results of this workspace where they are comparable."""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from components.evaluation.leaderboard import DATASETS, METRICS, SETTINGS, Result, leaderboard
from pipelines import params
from pipelines.graph import GADMS_ARMS
from pipelines.workspace import Workspace

EVALUATED = "metrics/gadms_evaluate/{arm}.json"


def show_leaderboards(workspace: Workspace, dataset: str | None = None, setting: str = SETTINGS[0]) -> None:
    """Print the table of one dataset, or of each. Raises ParameterError for an unknown one."""
    console, own = Console(), own_results(workspace)
    source = params.load(workspace.path("params.yaml")).prepare.source
    for name in (dataset,) if dataset else DATASETS:
        _show(name, leaderboard(name, setting, own if _is_comparable(source, name, setting) else None), console)
    console.print(_remark(source, own), style="dim", highlight=False)


def own_results(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Arm -> its metrics on the test split, for the arms that have results."""
    paths = {arm: workspace.path(EVALUATED.format(arm=arm)) for arm in GADMS_ARMS}
    return {arm: json.loads(path.read_text(encoding="utf-8")) for arm, path in paths.items() if path.is_file()}


def _is_comparable(source: str, dataset: str, setting: str) -> bool:
    """Whether the models of this workspace were trained and tested on the data of the table."""
    return source.lower() == dataset and setting == "fine-tuned"


def _remark(source: str, own: dict[str, dict[str, Any]]) -> str:
    selection = (
        "Published numbers are mostly of the best epoch on the test set; those of this workspace are of the last step."
    )
    if not own:
        return f"{selection} This workspace has no results."
    if source.lower() in DATASETS:
        return selection
    first = ", ".join(f"{arm} {metrics['R@1']:.1f}" for arm, metrics in own.items())
    return f"{selection} This workspace's results are on {source!r} and cannot be compared with these: R@1 {first}."


def _show(dataset: str, rows: list[Result], console: Console) -> None:
    sources = list(dict.fromkeys(row.source for row in rows if not row.own))
    table = Table(title=f"{dataset}: {rows[0].setting}", title_justify="left")
    table.add_column("method + what it was pre-trained on", overflow="fold")
    for heading in (*METRICS, "from"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        name = f"{row.method} + {row.pretraining}" if row.pretraining else row.method
        numbers = [f"{row.metrics[metric]:.2f}" if metric in row.metrics else "" for metric in METRICS]
        origin = "here" if row.own else str(sources.index(row.source) + 1)
        table.add_row(
            escape(", ".join(filter(None, (name, row.venue)))), *numbers, origin, style="bold" if row.own else None
        )
    console.print(table)
    for number, source in enumerate(sources, 1):
        console.print(f"{number:2}  {source}", markup=False, highlight=False, soft_wrap=True)
    console.print()
