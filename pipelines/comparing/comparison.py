"""Compares runs: parameters, metrics with their certainty, and examples; in the terminal and as a page."""

from collections.abc import Sequence
from pathlib import Path

from components.evaluation.intervals import Interval
from pipelines.comparing.differences import Comparison, compare_runs
from pipelines.comparing.examples import disputed_queries, picture_grid
from pipelines.comparing.page import write_page
from pipelines.comparing.people import people_here
from pipelines.comparing.runs import read_runs
from pipelines.terminal.console import TableConsole
from pipelines.terminal.tables import number_table
from pipelines.workspace import Workspace

PAGE = "reports/compare.html"
PROMPTS, QUERIES = 8, 12
"""Examples on the page."""
SHOWN_METRICS = 24
"""In the terminal; the page shows all."""


def compare(workspace: Workspace, run_ids: Sequence[str], output: Path | None = None) -> Path:
    """Print the differences and write the page; return its path. Raises as `read_runs`."""
    runs = read_runs(workspace, run_ids)
    people = people_here(workspace)
    comparison, console = compare_runs(runs, people), TableConsole()
    _print(comparison, console)
    grid, disputed = picture_grid(runs, PROMPTS), disputed_queries(runs, people, QUERIES)
    page = write_page(output or workspace.path(PAGE), comparison, grid, disputed)
    console.print(f"wrote {page}", highlight=False)
    return page


def _print(comparison: Comparison, console: TableConsole) -> None:
    letters = [chr(ord("A") + place) for place in range(len(comparison.runs))]
    for letter, run in zip(letters, comparison.runs, strict=True):
        console.print(f"{letter}  {run.name}  {run.run_id}", highlight=False, markup=False)
    rows = [(key, *(value or "–" for value in values)) for key, values in comparison.parameters]
    console.print(number_table("Parameters that differ", ("parameter", *letters), rows))
    metrics = comparison.metrics
    shown = [(f"{stage or 'run'}: {name}", *map(_number, values)) for stage, name, values in metrics[:SHOWN_METRICS]]
    more = f" ({len(metrics) - SHOWN_METRICS} more on the page)" if len(metrics) > SHOWN_METRICS else ""
    console.print(number_table(f"Metrics that differ{more}", ("metric", *letters), shown))
    if comparison.paired:
        headings = ("measure", "on", letters[0], *(f"{letter} minus {letters[0]}" for letter in letters[1:]))
        tests = [
            (
                f"{test.stage}: {test.measure}",
                f"{test.items}, by {test.unit}",
                _number(test.means[0]),
                *(_interval(difference) for difference in test.differences if difference is not None),
            )
            for test in comparison.paired
        ]
        console.print(number_table("Paired: 95 % intervals, * where they exclude 0", headings, tests))
    for line in (*comparison.not_paired, *comparison.notes):
        console.print(line, style="yellow", highlight=False)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.5g}"


def _interval(difference: Interval) -> str:
    certain = " *" if difference.low > 0 or difference.high < 0 else ""
    return f"{difference.mean:+.2f} [{difference.low:.2f}, {difference.high:.2f}]{certain}"
