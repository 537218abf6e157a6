"""Metrics of retrieval and of attributes in generated pictures, with confidence intervals."""

from typing import Any

from components.exports import all_names, find

_PUBLIC = {
    "alignment": ("AlignmentScores", "score_alignment"),
    "intervals": ("Interval", "bootstrap_difference", "bootstrap_mean"),
    "probe.model": ("AttributeProbe",),
    "probe.training": ("ProbeTask",),
    "retrieval": ("retrieval_metrics",),
}
__all__ = all_names(_PUBLIC)


def __getattr__(name: str) -> Any:
    return find(__name__, _PUBLIC, name)
