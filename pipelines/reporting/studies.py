"""The results of studies as the page shows them: intervals with a dot for each seed, and heat maps."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from components.errors import DataError
from pipelines.graph import GADMS_ARMS, TACA_ARMS
from pipelines.reporting.charts import Limits, axis, centred, line_chart
from pipelines.workspace import Workspace

FOLDER = "studies/results"
VARIANTS = {
    "taca": "TACA, as in params.yaml",
    "bias": "bias: logits + log γ",
    "text_queries": "text queries × image keys",
    "constant": "constant: every step",
    "linear": "linear: γ falls to 1",
    "cosine": "cosine: γ falls to 1",
}
CARRIED = ("base", "same", "rule")
PUBLISHED = ("gadms", "random", "contrastive", "nam", "irra")
"""The arms that have a colour in style.css."""
DIFFERENCE = ("difference", "difference_by_seed")
KINDS = {
    "seen": "training captions",
    "seen_fact": "words in them that state a fact",
    "seen_colour": "colour words in them",
    "unseen": "captions of unseen people",
    "unseen_fact": "words in them that state a fact",
    "unseen_colour": "colour words in them",
}
"""The words that the AUC of a score is over, by their name in the results."""


def read_results(workspace: Workspace, name: str) -> dict[str, Any]:
    """Return the results of a study, empty if it has none. Raises DataError for a file that cannot be read."""
    file = workspace.path(f"{FOLDER}/{name}.json")
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no mapping")
    except ValueError as error:
        raise unusable(name, "read", error) from error
    return found


def unusable(name: str, tried: str, error: Exception) -> DataError:
    """Return the error for results in another form than the engine writes, which cannot be `tried` (read, shown)."""
    reason = f"{type(error).__name__}: {error}"
    return DataError(
        f"{FOLDER}/{name}.json: cannot be {tried} ({reason}); run `python -m pipelines study {name} --summary`"
    )


def study_views(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """The view of each study that has results and a view of its kind, by its name; "kind" names the template.

    Raises DataError for a results file that cannot be read.
    """
    views = {}
    for file in sorted(workspace.path(FOLDER).glob("*.json")):
        name = file.stem
        results = read_results(workspace, name)
        try:
            kind = results.get("plan", {}).get("kind") or name
            if kind in VIEWS:
                views[name] = {"kind": kind, **VIEWS[kind](results)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise unusable(name, "read", error) from error
    return views


def taca_view(results: Mapping[str, Any]) -> dict[str, Any]:
    """Arms, map and variants for each guidance scale, on common axes."""
    summary = results["summary"]
    guidances = sorted(summary["arms"], key=lambda name: float(name.split()[-1]))
    arms = {name: _ordered(summary["arms"][name], TACA_ARMS) for name in guidances}
    variants = {name: _ordered(summary["variants"].get(name, {}), VARIANTS) for name in guidances}
    every_map = [row for name in guidances for row in summary["map"].get(name, [])]
    sigmas = [arms[name]["taca"]["sigma"] for name in guidances if "taca" in arms[name]]
    default = {"gamma": summary["default"]["gamma"], "sigma": (sigmas or [None])[0]}
    largest = max((abs(row["difference"]["mean"]) for row in every_map), default=0.0)
    return {
        **{key: results[key] for key in ("revision", "dirty", "done", "of")},
        "default": default,
        "guidances": guidances,
        "arms": arms,
        "variants": variants,
        "carried": {name: _ordered(summary.get("carried", {}).get(name, {}), CARRIED) for name in guidances},
        "size": results.get("plan", {}).get("carried"),
        "variant_names": VARIANTS,
        "maps": {name: gamma_map(summary["map"].get(name, []), default, largest) for name in guidances},
        "largest": largest,
        "axes": {
            "alignment": _axis((row for rows in arms.values() for row in rows.values()), "alignment", "by_seed"),
            "arms": centred(_axis((row for rows in arms.values() for row in rows.values()), *DIFFERENCE, step=2)),
            "variants": centred(
                _axis((row for rows in variants.values() for row in rows.values()), *DIFFERENCE, step=2)
            ),
        },
    }


def gadms_view(results: Mapping[str, Any]) -> dict[str, Any]:
    """For each noise level the arms, on common axes, and a map of the AUC of each score by the encoder of each arm."""
    summary = results["summary"]
    noises = sorted(summary["arms"], key=lambda name: float(name.split()[-1]))
    rows = [row for name in noises for row in summary["arms"][name].values()]
    minus = [row for arm in rows for row in arm["minus"].values()]
    arms = {name: _ordered(summary["arms"][name], GADMS_ARMS) for name in noises}
    curves: dict[str, tuple[list[int], list[float | None]]] = {}
    drawn = [arm for arm in PUBLISHED if any(arm in arms[name] for name in noises)]
    for arm in drawn:
        values = [arms[name][arm]["R@1"] if arm in arms[name] else None for name in noises]
        curves[arm] = ([round(100 * float(name.split()[-1])) for name in noises], values)
    return {
        **{key: results[key] for key in ("revision", "dirty", "done", "of")},
        "noises": noises,
        "arms": arms,
        "curve": line_chart(curves, "R@1 by percent of facts that are false", last="% of facts are false"),
        "drawn": drawn,
        "plan": results["plan"],
        "scores": {name: auc_map(summary["scores"][name]) for name in noises},
        "axes": {
            "R@1": _axis(({**row, "hits": row["interval"]} for row in rows), "hits", "by_seed"),
            "minus": centred(_axis(({"minus": row, **row} for row in minus), "minus", "by_seed", step=2)),
        },
    }


def auc_map(encoders: Mapping[str, Any]) -> dict[str, Any] | None:
    """A map with a row per score, the best first, and a column per encoder and kind of words. None without encoders.

    "shade" is the strength of a cell's colour: 0 at an AUC of one half, 1 at 0 or 1.
    """
    columns = [(arm, kind) for arm, row in encoders.items() for kind in KINDS if kind in row]
    if not columns:
        return None
    scores = list(dict.fromkeys(score for arm, kind in columns for score in encoders[arm][kind]))

    def cell(score: str, arm: str, kind: str) -> dict[str, Any] | None:
        row = encoders[arm][kind].get(score)
        if row is None:
            return None
        return {
            "mean": row["mean"],
            "low": min(row["by_seed"]),
            "high": max(row["by_seed"]),
            "shade": min(1.0, 2 * abs(row["mean"] - 0.5)),
            "kind": "up" if row["mean"] >= 0.5 else "down",
        }

    rows = [{"score": score, "cells": [cell(score, *column) for column in columns]} for score in scores]
    rows.sort(key=lambda row: -fmean([found["mean"] for found in row["cells"] if found] or [0.0]))
    kinds = [{"encoder": arm, "kind": KINDS[kind]} for arm, kind in columns]
    return {"columns": kinds, "rows": rows, "seeds": next(iter(encoders.values()))["seeds"]}


def gamma_map(rows: Sequence[Mapping[str, Any]], default: Mapping[str, Any], largest: float) -> dict[str, Any] | None:
    """A map with a row per gamma and a column per threshold, from late to always, of differences to the base. None without rows.

    "shade" is the strength of a cell's colour, 1 for the `largest` difference: by the square root, so that small gains stay visible
    beside one large loss.
    """
    if not rows:
        return None
    found = {(row["gamma"], row["threshold"]): row for row in rows}
    gammas = sorted({row["gamma"] for row in rows})
    thresholds = sorted({row["threshold"] for row in rows}, reverse=True)
    active = {row["threshold"]: row["active_steps"] for row in rows}

    def cell(gamma: float, threshold: float) -> dict[str, Any] | None:
        row = found.get((gamma, threshold))
        if row is None:
            return None
        difference = row["difference"]
        return {
            **difference,
            "kind": "up" if difference["mean"] >= 0 else "down",
            "shade": math.sqrt(abs(difference["mean"]) / largest) if largest else 0.0,
            "sure": difference["low"] > 0 or difference["high"] < 0,
            "default": (gamma, threshold) == (default["gamma"], default["sigma"]),
        }

    return {
        "columns": [{"threshold": threshold, "active_steps": active[threshold]} for threshold in thresholds],
        "rows": [{"gamma": gamma, "cells": [cell(gamma, threshold) for threshold in thresholds]} for gamma in gammas],
        **{key: rows[0][key] for key in ("steps", "prompts", "seeds")},
    }


VIEWS = {"taca": taca_view, "gadms": gadms_view}
"""The view of a study's results by its kind."""


def _ordered(rows: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """`rows` with those in `names` first, in that order."""
    return {name: rows[name] for name in [*(n for n in names if n in rows), *(n for n in rows if n not in set(names))]}


def _axis(rows: Iterable[Mapping[str, Any]], interval: str, values: str, step: float = 5) -> Limits:
    """A round axis that encloses every interval and the value of every seed."""
    return axis((end for row in rows for end in (row[interval]["low"], row[interval]["high"], *row[values])), step)
