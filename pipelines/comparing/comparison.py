"""`python -m pipelines compare RUN_ID RUN_ID ...`: what differs, by how much and how surely; the page shows where."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.evaluation.intervals import Interval
from pipelines.comparing.differences import metric_table, paired_tests, parameter_differences
from pipelines.comparing.sides import read_sides
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from rich.table import Table

PAGE, PEOPLE = "reports/compare.html", "data/people"
PROMPTS, QUERIES = 8, 12
"""Shown on the page."""
SHOWN = 24
"""Metrics in the terminal; the page has all."""


def compare(workspace: Workspace, run_ids: Sequence[str], output: Path | None = None) -> Path:
    """Print the differences and write the page. Returns its path.

    Raises as `read_sides`; results that can no longer be paired cost a line, not the comparison.
    """
    from rich.console import Console

    from pipelines.comparing.examples import disputed_queries, drawn_grid
    from pipelines.comparing.page import write_page

    sides = read_sides(workspace, run_ids)
    people = workspace.path(PEOPLE)
    parameters = parameter_differences(sides)
    metrics, cost = metric_table(sides, cost=False), metric_table(sides, cost=True)
    paired, trouble = paired_tests(sides, people)
    console, letters = Console(), [chr(ord("A") + place) for place in range(len(sides))]
    for letter, side in zip(letters, sides, strict=True):
        console.print(f"{letter}  {side.name}  {side.run_id}", highlight=False, markup=False)
    rows = [(key, *(value or "–" for value in values)) for key, values in parameters]
    console.print(_table("Parameters that differ", ("parameter", *letters), rows))
    shown = [(f"{stage or 'run'}: {name}", *map(_number, values)) for stage, name, values in metrics[:SHOWN]]
    left = f" ({len(metrics) - SHOWN} more on the page)" if len(metrics) > SHOWN else ""
    console.print(_table(f"Metrics that differ{left}", ("metric", *letters), shown))
    if paired:
        headings = ("measure", "on", letters[0], *(f"{letter} minus {letters[0]}" for letter in letters[1:]))
        tests = [
            (
                f"{row.stage}: {row.measure}",
                f"{row.things}, by {row.unit}",
                _number(row.means[0]),
                *(_interval(difference) for difference in row.differences if difference is not None),
            )
            for row in paired
        ]
        console.print(_table("Paired: 95 % intervals, * where they leave out 0", headings, tests))
    for line in trouble:
        console.print(line, style="yellow", highlight=False)
    page = write_page(
        output or workspace.path(PAGE),
        sides,
        parameters=parameters,
        metrics=metrics,
        cost=cost,
        paired=paired,
        trouble=trouble,
        grid=drawn_grid(sides, PROMPTS),
        disputed=disputed_queries(sides, people, QUERIES),
        people=people,
    )
    console.print(f"wrote {page}", highlight=False)
    return page


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption=None if rows else "none", caption_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(escape(heading), justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.5g}"


def _interval(difference: Interval) -> str:
    sure = " *" if difference.low > 0 or difference.high < 0 else ""
    return f"{difference.mean:+.2f} [{difference.low:.2f}, {difference.high:.2f}]{sure}"
