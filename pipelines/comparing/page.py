"""`reports/compare.html`: one file for one comparison, in the look of the report."""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.files import write_atomically
from pipelines.comparing.differences import Paired, common_stages
from pipelines.comparing.sides import Side
from pipelines.reporting import charts
from pipelines.reporting.charts import axis, centred, ends
from pipelines.reporting.formats import environment

COLOURS = 4
"""Runs beyond these share a colour."""


def write_page(
    path: Path,
    sides: Sequence[Side],
    *,
    parameters: Sequence[tuple[str, list[str | None]]],
    metrics: Sequence[tuple[str, str, list[float | None]]],
    cost: Sequence[tuple[str, str, list[float | None]]],
    paired: Sequence[Paired],
    trouble: Sequence[str],
    grid: Any,
    disputed: Sequence[Mapping[str, Any]],
    people: Path | None,
) -> Path:
    """Write the page; `grid` is a PIL picture or None."""
    intervals = [difference.as_dict() for row in paired for difference in row.differences if difference is not None]
    right = _people(people, [query["image_id"] for query in disputed])
    page = (
        environment(path.parent)
        .get_template("compare.html")
        .render(
            sides=sides,
            colour=[f"side{place % COLOURS}" for place in range(len(sides))],
            parameters=parameters,
            metrics=metrics,
            cost=cost,
            paired=paired,
            difference_axis=centred(axis(ends(intervals), 5)),
            trouble=trouble,
            curves=curve_panels(sides),
            grid=_uri(grid) if grid is not None else None,
            disputed=[{**query, "picture": picture} for query, picture in zip(disputed, right, strict=True)],
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


def curve_panels(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """For each common stage its curves, those of all runs over each other."""
    panels = []
    for key in common_stages(sides):
        tables = [_curves(side.stages[key].curves) for side in sides]
        columns = sorted({column for table in tables for column in table} - {"step"})
        drawn = []
        for column in columns:
            series = {
                f"side{place % COLOURS}": ([int(step or 0) for step in table["step"]], table[column])
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


def _uri(picture: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return _data(stream.getvalue())


def _people(people: Path | None, image_ids: Sequence[int]) -> list[str | None]:
    """Their pictures, where the data set is there."""
    if people is None or not people.is_dir():
        return [None] * len(image_ids)
    from components.persons.shards import PersonDataset

    known = PersonDataset.open(people)
    return [_data(known.image_bytes(image_id)) for image_id in image_ids]


def _data(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()
