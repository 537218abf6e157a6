"""`python -m pipelines repro --dry`: what would be done, why, and how long it should take. Nothing is locked or written."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from components.errors import ParameterError
from pipelines.errors import InfrastructureError, one_line
from pipelines.graph import StageRun
from pipelines.scheduling.durations import UNKNOWN_SECONDS, Durations
from pipelines.scheduling.dvc_repo import DvcRepo, Foreseen
from pipelines.scheduling.live_view import duration
from pipelines.scheduling.needs import Decision, Need
from pipelines.scheduling.plan import Fits, Plan, expected_time
from pipelines.terminal.console import TableConsole

REASONS = 8
"""Reasons that a row names, parameters first; the rest is counted."""


def decisions(repository: DvcRepo, plan: Plan, *, force: bool = False) -> dict[str, Decision]:
    """Return by address what each run of the plan needs, as far as that can be known before those before it have run."""
    found: dict[str, Decision] = {}
    foreseen: dict[str, Foreseen] = {}
    for run in plan.runs:
        found[run.address] = repository.decide(run, force=force, foreseen=foreseen)
        foreseen |= repository.outcome(run, found[run.address])
    return found


def print_plan(
    repository: DvcRepo, runs: Sequence[StageRun], durations: Durations, fits: Fits, *, force: bool = False
) -> None:
    """Print the plan as a table, the expected time of the whole, and the path that takes longest."""
    plan = Plan(runs, durations)
    found = decisions(repository, plan, force=force)
    stale = [run for run in plan.runs if found[run.address].need is Need.RUN]
    console = TableConsole()
    console.print(_table(plan, found), markup=True)
    if not stale:
        console.print("nothing to run", highlight=False)
        return
    running = Plan(plan.runs, lambda run: plan.expected(run) if run in stale else 0.0)
    path = [run for run in running.longest_path() if run in stale]
    steps = " -> ".join(f"{run.address} ({duration(plan.expected(run))})" for run in path)
    work = duration(sum(map(plan.expected, stale)))
    try:
        whole = f"{duration(expected_time(running, fits))}, {_at_once(stale, fits)}"
    except (InfrastructureError, ParameterError) as error:  # the cluster is away, or too small
        whole = f"not known ({one_line(error)})"
    console.print(f"expected: {whole}; work {work}", highlight=False)
    console.print(f"longest path: {duration(sum(map(plan.expected, path)))}: {steps}", highlight=False)
    if assumed := [run.address for run in stale if durations.is_assumed(run)]:
        minute = duration(UNKNOWN_SECONDS)
        console.print(
            f"{minute} is assumed of stages that have not finished here: {', '.join(assumed)}", highlight=False
        )


def _at_once(stale: list[StageRun], fits: Fits) -> str:
    beside: list[StageRun] = []
    for run in stale:
        if fits(run, beside):
            beside.append(run)
    return f"at most {len(beside)} stage{'s' if len(beside) > 1 else ''} at once"


def _table(plan: Plan, found: dict[str, Decision]) -> Table:
    table = Table()
    for heading in ("stage", "is", "why"):
        table.add_column(heading)
    table.add_column("expected", justify="right")
    for run in plan.runs:
        decision = found[run.address]
        reasons = "; ".join(decision.reasons[:REASONS])
        if len(decision.reasons) > REASONS:
            reasons += f"; and {len(decision.reasons) - REASONS} more"
        seconds = duration(plan.expected(run)) if decision.need is Need.RUN else ""
        table.add_row(escape(run.address), str(decision.need), escape(reasons), seconds)
    return table
