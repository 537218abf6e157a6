"""`reports/compare.html`: one comparison in one file, in the style of the report."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.files import write_atomically
from pipelines.comparing.differences import Comparison, common_stages
from pipelines.comparing.runs import ComparedRun
from pipelines.reporting import charts
from pipelines.reporting.charts import axis, centred, ends
from pipelines.reporting.formats import data_uri, environment

COLOURS = 4
"""Runs beyond these share a colour."""


def write_page(path: Path, comparison: Comparison, grid: Any, disputed: Sequence[Mapping[str, Any]]) -> Path:
    """Write the page. grid, disputed: as `pipelines.comparing.examples` makes them."""
    runs = comparison.runs
    intervals = [change.as_dict() for test in comparison.paired for change in test.differences if change is not None]
    template = environment(path.parent).get_template("compare.html")
    page = template.render(
        comparison=comparison,
        runs=runs,
        colour=[f"run{place % COLOURS}" for place in range(len(runs))],
        difference_axis=centred(axis(ends(intervals), 5)),
        curves=curve_panels(runs),
        grid=_uri(grid),
        disputed=[{**query, "picture": _uri(query["picture"])} for query in disputed],
    )
    write_atomically(path, page)
    return path


def curve_panels(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """The charts of each common stage, one curve per run."""
    panels = []
    for key in common_stages(runs):
        tables = [_curves(run.stages[key].curves) for run in runs]
        columns = sorted({column for table in tables for column in table} - {"step"})
        drawn = []
        for column in columns:
            series = {
                f"run{place % COLOURS}": ([int(step or 0) for step in table["step"]], table[column])
                for place, table in enumerate(tables)
                if column in table
            }
            drawn.append({"title": column, "svg": charts.line_chart(series, f"{key}: {column}")})
        if drawn:
            panels.append({"stage": key, "charts": drawn})
    return panels


def _curves(file: Path | None) -> dict[str, list[float | None]]:
    if file is None:
        return {}
    rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
    return {name: [float(row[name]) if row[name] else None for row in rows] for name in (rows[0] if rows else {})}


def _uri(picture: Any) -> str | None:
    if picture is None:
        return None
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return data_uri(stream.getvalue())
