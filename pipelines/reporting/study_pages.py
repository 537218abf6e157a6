"""A page for each study, `reports/studies/<name>.html`, and its claim on the front page.

Question, claim, controls and contrasts are those of the results, or, for a study without any, of `studies/<name>.yaml`: what has
not been measured is shown as planned, without numbers.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from components.errors import ParameterError
from components.files import write_atomically
from pipelines.reporting.charts import Limits, axis, centred, contrast_chart, line_chart
from pipelines.reporting.formats import environment
from pipelines.reporting.studies import FOLDER, read_results, study_views, unusable
from pipelines.schema.reading import read_yaml
from pipelines.workspace import Workspace

PLANS, PAGES = "studies", "reports/studies"
ORDER = ("factorial", "confusion", "chain", "taca", "wording", "protocol", "gadms")
"""The order of the studies on the front page; others follow by name."""
STATUS = {
    "planned": ("planned", "open"),
    "screened": ("screened, not confirmed", "open"),
    "part": ("being confirmed", "open"),
    "holds": ("holds", "yes"),
    "open": ("not confirmed", "open"),
    "contradicted": ("contradicted", "no"),
}
"""Status of a claim or a contrast -> its words, and the class of its pill."""
EXPECTED = {"more": "above", "less": "below", "level": "within ±"}
LABELLED = ("arm", "minus", "condition")


def study_pages(workspace: Workspace) -> list[dict[str, Any]]:
    """The view of every study that has a plan or results, in ORDER. Raises DataError for results that cannot be read."""
    details = study_views(workspace)
    names = {
        file.stem
        for folder, ending in ((PLANS, "yaml"), (FOLDER, "json"))
        for file in _files(workspace, folder, ending)
    }
    ordered = sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return [_page(workspace, name, details.get(name)) for name in ordered]


def write_study_pages(workspace: Workspace, pages: Sequence[Mapping[str, Any]], rendered: str) -> list[Path]:
    """Write a page for each view and return their paths; a page of a study that is no more is removed."""
    template = environment(workspace.path(PAGES)).get_template("study.html")
    written = []
    for page in pages:
        path = workspace.path(f"{PAGES}/{page['name']}.html")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, template.render(page=page, pages=pages, rendered=rendered))
        written.append(path)
    for file in _files(workspace, PAGES, "html"):
        if file not in written:
            file.unlink()
    return written


def _files(workspace: Workspace, folder: str, ending: str) -> list[Path]:
    return sorted(workspace.path(folder).glob(f"*.{ending}"))


def _page(workspace: Workspace, name: str, detail: Mapping[str, Any] | None) -> dict[str, Any]:
    results = read_results(workspace, name)
    plan = _plan(workspace, name)
    measured = results.get("plan", {})
    head = {
        key: measured.get(key) or plan.get(key) for key in ("question", "claim", "scope", "controls", "labels", "cost")
    }
    summary = results.get("summary", {})
    try:
        rows = summary["contrasts"] if "contrasts" in summary else planned_contrasts(plan)
        if name == "gadms":
            rows = gadms_contrasts(summary)
        labels = head["labels"] or {}
        rows = [{**row, **{key: _label(row[key], labels) for key in LABELLED}} for row in rows]
        done = results.get("done", 0)
        status = summary.get("claim") or ("screened" if any(row["screen"] for row in rows) else "planned")
        return {
            "name": name,
            **head,
            "controls": list(head["controls"] or ()),
            "status": status,
            "words": STATUS[status],
            "contrasts": contrast_groups([row for row in rows if row["expect"]]),
            "asked": contrast_groups([row for row in rows if not row["expect"]]),
            "front": contrast_groups([row for row in rows if row["expect"]] or rows),
            "outcome": outcome(rows),
            "unit": summary.get("unit", "R@1 in percent"),
            "done": done,
            "of": results.get("of"),
            "phases": results.get("phases", {}),
            "spent": {"processor_seconds": None, "by_function": {}, **results.get("cost", {})},
            "revision": results.get("revision"),
            "dirty": results.get("dirty"),
            "earlier": bool(done and rows and not any(row["screen"] or row["confirm"] for row in rows)),
            "maps": arm_maps(summary.get("arms", {}), labels) if detail is None else [],
            "start": summary.get("start"),
            "curves": curves(summary.get("curve") or {}, summary.get("start"), labels),
            "detail": detail,
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unusable(name, "shown", error) from error


def _plan(workspace: Workspace, name: str) -> dict[str, Any]:
    """The plan as it is written; nothing of one that is no YAML, which the study itself refuses."""
    try:
        found = read_yaml(workspace.path(f"{PLANS}/{name}.yaml"))
    except ParameterError:
        return {}
    return found if isinstance(found, dict) else {}


def planned_contrasts(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a plan's contrasts before anything is measured."""
    return [
        {
            "expect": None,
            "margin": 0.0,
            **contrast,
            "condition": at,
            "screen": None,
            "confirm": None,
            "status": "planned",
        }
        for contrast in plan.get("contrasts") or ()
        for at in contrast["at"]
    ]


def gadms_contrasts(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the study `gadms`, whose plan names no contrasts, was about: its method against random masks. Nothing was claimed."""
    found = [
        (noise, rows["gadms"]["minus"]["random"])
        for noise, rows in summary.get("arms", {}).items()
        if "random" in rows.get("gadms", {}).get("minus", {})
    ]
    shared = {"title": "GA-DMS over random masks", "arm": "gadms", "minus": "random", "expect": None, "margin": 0.0}
    return [
        {**shared, "condition": noise, "screen": difference, "confirm": None, "status": "screened"}
        for noise, difference in found
    ]


def contrast_groups(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Contrasts of one title together, each with its drawing on the axis that all share, and what was claimed."""
    limits = contrast_axis(rows)
    groups = []
    for title, own in groupby(rows, key=lambda row: row["title"]):
        of_title = list(own)
        first = of_title[0]
        claimed = f"{EXPECTED[first['expect']]} {first['margin']:g}".replace("± ", "±") if first["expect"] else None
        drawn = [
            {**row, "words": _words(row), "numbers": numbers(row), "svg": contrast_chart(row, limits)}
            for row in of_title
        ]
        pair = f"{first['arm']} − {first['minus']}"
        groups.append({"title": title, "pair": pair, "claimed": claimed, "rows": drawn, "axis": limits})
    return groups


def contrast_axis(rows: Sequence[Mapping[str, Any]]) -> Limits:
    """An axis with 0 in its middle that encloses every interval, every seed and every margin."""
    found = [row[phase] for row in rows for phase in ("screen", "confirm") if row[phase]]
    values = [end for each in found for end in (each["low"], each["high"], *each["by_seed"])]
    return centred(axis([*values, *(row["margin"] for row in rows), 2.0], 2))


def numbers(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The interval that counts, of the fresh seeds if there are any, and its phase; None for a planned one."""
    for phase in ("confirm", "screen"):
        if row[phase]:
            return {**row[phase], "phase": phase, "number": len(row[phase]["seeds"])}
    return None


def _words(row: Mapping[str, Any]) -> tuple[str, str]:
    """Of a contrast without a claim, whether it was measured; of another, its status."""
    if row["expect"] or row["status"] in ("planned", "screened", "part"):
        return STATUS[row["status"]]
    return "measured", "open"


def outcome(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """When the claim holds: for each status of the contrasts that claim something, which those are, and where."""
    found = []
    for status in ("holds", "open", "contradicted", "part", "screened", "planned"):
        own = [row for row in rows if row["expect"] and row["status"] == status]
        places = [
            f"{title} ({', '.join(row['condition'] for row in of_title)})"
            for title, of_title in groupby(own, key=lambda row: row["title"])
        ]
        if places:
            found.append({"words": STATUS[status], "places": places})
    return found


def arm_maps(arms: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """For each condition a map of the arms' values: the last factor across, the others down.

    An arm's value is that of the fresh seeds, or of those that screen where the fresh ones are not measured.
    """
    values = [_shown(row)["mean"] for rows in arms.values() for row in rows.values()]
    if not values:
        return []
    low, high = min(values), max(values)
    maps = []
    for condition, rows in arms.items():
        columns = list(dict.fromkeys(arm.rpartition("/")[2] for arm in rows))
        lines = list(dict.fromkeys(arm.rpartition("/")[0] for arm in rows))
        cells = {
            arm: {**_shown(row), "shade": (_shown(row)["mean"] - low) / ((high - low) or 1)}
            for arm, row in rows.items()
        }
        maps.append(
            {
                "condition": _label(condition, labels),
                "columns": [labels.get(column, column) for column in columns],
                "rows": [
                    {"name": line, "cells": [cells.get(f"{line}/{column}" if line else column) for column in columns]}
                    for line in lines
                ],
            }
        )
    return maps


def _label(name: str, labels: Mapping[str, str]) -> str:
    """The words of an arm or a condition on the page."""
    return labels.get(name, name.replace("-", " "))


def _shown(row: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = row.get("confirm") or row["screen"]
    return found


def curves(
    curve: Mapping[str, Mapping[str, Any]], start: Mapping[str, Any] | None, labels: Mapping[str, str]
) -> list[dict[str, Any]]:
    """For each condition a chart of R@1 by steps of training, from the start on, one curve per arm."""
    charts = []
    for condition, arms in curve.items():
        first = [(0, start["mean"])] if start else []
        keys = {arm: f"s{place % 6}" for place, arm in enumerate(arms)}
        series = {}
        for arm, points in arms.items():
            reached = first + [(point["steps"], point["mean"]) for point in points]
            series[keys[arm]] = ([step for step, _ in reached], [value for _, value in reached])
        where = _label(condition, labels)
        svg = line_chart(series, f"R@1 by steps of training, {where}", last="steps")
        charts.append(
            {"condition": where, "svg": svg, "keys": {key: labels.get(arm, arm) for arm, key in keys.items()}}
        )
    return charts
