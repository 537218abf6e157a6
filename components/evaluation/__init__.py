"""Metrics of retrieval and of attributes in generated pictures, with confidence intervals."""

from importlib import import_module
from typing import Any

_HOME = {
    "AttributeProbe": "probe.model",
    "ProbeTask": "probe.training",
    "AlignmentScores": "alignment",
    "score_alignment": "alignment",
    "Interval": "intervals",
    "bootstrap_mean": "intervals",
    "bootstrap_difference": "intervals",
    "retrieval_metrics": "retrieval",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
