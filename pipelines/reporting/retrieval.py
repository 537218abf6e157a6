"""The detection of wrong words in training, and the leaderboards of published results."""

from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluation.leaderboard import DATASETS, METRICS, leaderboard
from pipelines.reporting import charts

NOISE_CURVES = ("noise_auc", "noise_precision", "wrong_share")


def noise_panels(curves: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[dict[str, Any]]:
    """Charts of how well scores and masks find wrong words while `gadms` trains, for each stage whose data marks them.

    The AUC of the score, beside 0.5; the fraction of wrong words among masked words, beside that among all.
    """
    panels = []
    for stage in ("gadms_pretrain", "gadms_finetune"):
        table = curves.get(f"{stage}@gadms", {})
        found = {name: table[f"train/{name}"] for name in NOISE_CURVES if f"train/{name}" in table}
        if len(found) < len(NOISE_CURVES):
            continue
        auc, precision, share = (found[name] for name in NOISE_CURVES)
        chance = [None if value is None else 0.5 for value in auc]
        pairs = {"gadms": (table["step"], auc), "coin": (table["step"], chance)}
        svg = charts.line_chart(pairs, "noise AUC")
        panels.append({"title": f"{stage}: AUC of the score", "legend": False, "svg": svg})
        pairs = {"precision": (table["step"], precision), "wrong_share": (table["step"], share)}
        svg = charts.line_chart(pairs, "precision of the noise mask")
        panels.append({"title": f"{stage}: masks", "legend": True, "svg": svg})
    return panels


def leaderboards(retrieval: Mapping[str, Any], arm_names: Mapping[str, str]) -> dict[str, Any]:
    """Published results of each data set, with those of the report's section on retrieval among them where they are on that set."""
    dataset = retrieval["dataset"]
    here = dataset.lower()
    shared = {key: retrieval[key] for key in ("gallery", "left_out")}
    own = {arm_names.get(arm, arm): {**row, **shared} for arm, row in retrieval["arms"].items()}
    remark = "Published numbers are mostly the best epoch on the test set."
    if here not in DATASETS:
        remark += f" This run was tested on {dataset!r} and cannot be compared with them."
    return {
        "metrics": METRICS,
        "remark": remark,
        "tables": {name: leaderboard(name, own=own if name == here else None) for name in DATASETS},
    }
