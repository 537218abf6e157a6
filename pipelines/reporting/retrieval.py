"""What the page says of retrieval beside its results: how well wrong words are found in training, and published numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluation.leaderboard import DATASETS, METRICS, leaderboard
from pipelines.reporting import charts

NOISE_CURVES = ("noise_auc", "noise_precision", "wrong_share")


def noise_panels(curves: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[dict[str, Any]]:
    """How well scores and masks find the wrong words while `gadms` trains, for each phase that knows which words are wrong.

    The AUC of the score beside that of a coin; the share of wrong words among masked ones beside that among all.
    """
    panels = []
    for stage in ("gadms_pretrain", "gadms_finetune"):
        table = curves.get(f"{stage}@gadms", {})
        known = {name: table[f"train/{name}"] for name in NOISE_CURVES if f"train/{name}" in table}
        if len(known) < len(NOISE_CURVES):
            continue
        auc, precision, share = (known[name] for name in NOISE_CURVES)
        coin = [None if value is None else 0.5 for value in auc]
        pairs = {"gadms": (table["step"], auc), "coin": (table["step"], coin)}
        panels.append(
            {"title": f"{stage}: AUC of the score", "shares": False, "svg": charts.line_chart(pairs, "noise AUC")}
        )
        pairs = {"precision": (table["step"], precision), "wrong_share": (table["step"], share)}
        panels.append(
            {"title": f"{stage}: masks", "shares": True, "svg": charts.line_chart(pairs, "precision of the noise mask")}
        )
    return panels


def leaderboards(source: str, own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Published results of each data set, with `own` (name -> metrics) among them where it was trained and tested on that set."""
    here = source.lower()
    remark = "Published numbers are mostly the best epoch on the test set."
    if here not in DATASETS:
        remark += f" This run is on people from {source!r}, and compares with none of them."
    return {
        "metrics": METRICS,
        "remark": remark,
        "tables": {name: leaderboard(name, own=own if name == here else None) for name in DATASETS},
    }
