"""Lists runs, newest first: executions of the pipeline, sweeps and pre-trainings, or the runs of another level."""

import datetime
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from pipelines.errors import REPRO_COMMAND
from pipelines.terminal.console import TableConsole
from pipelines.tracking.addresses import has_store
from pipelines.tracking.run_ids import SHORT, find_run
from pipelines.tracking.runs import LEVEL, PARENT, connect
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from mlflow.entities import Run

NUMBERS = {"pipeline": r"[^/]+", "sweep": r"best/.+", "trial": r"objective/[^.]+", "stage": r"cost/seconds"}
"""The metrics that are shown of a run, by its level."""

NO_RUNS = f"no runs yet: `{REPRO_COMMAND}` makes the first"


def list_runs(workspace: Workspace, levels: Sequence[str], limit: int, below: str | None = None) -> None:
    """Print the newest `limit` runs of `levels`; with `below` only those under that run. Raises as `find_run`.

    Where there is no store, none is made.
    """
    if not has_store(workspace):
        print(NO_RUNS)
        return
    tracker = connect(workspace)
    tracker.rename_former_levels()
    runs: list[Run] = []
    for level in levels:
        chosen = f"tags.{LEVEL} = '{level}'"
        if below:
            chosen += f" and tags.`{PARENT}` = '{find_run(tracker, below).info.run_id}'"
        newest = ["attributes.start_time DESC"]
        runs += tracker.client.search_runs([tracker.experiment], chosen, order_by=newest, max_results=limit)
    runs.sort(key=lambda run: -run.info.start_time)
    if runs:
        TableConsole().print(table(runs[:limit]))
    else:
        print(f"no runs of {' or '.join(levels)}" + (f" below {below}" if below else ""))


def table(runs: Sequence["Run"]) -> Table:
    """Return one row per run: the beginning of its id, what it is of, when it started, how it ended, its numbers."""
    shown = Table()
    shown.add_column("id", justify="right")
    for heading in ("run", "started", "status", "numbers"):
        shown.add_column(heading)
    for run in runs:
        wanted = NUMBERS.get(run.data.tags.get(LEVEL, ""), "")
        found = sorted((key, value) for key, value in run.data.metrics.items() if re.fullmatch(wanted, key))
        started = datetime.datetime.fromtimestamp(run.info.start_time / 1000).astimezone()
        cells = (run.info.run_name or "", f"{started:%Y-%m-%d %H:%M}", run.info.status)
        numbers = "\n".join(f"{key} {value:.5g}" for key, value in found)
        shown.add_row(run.info.run_id[:SHORT], *map(escape, (*cells, numbers)))
    return shown
