"""Intervals of docs/findings.md and README.md are those of studies/results."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
INTERVAL = re.compile(r"\[([+-]?\d+\.\d),\s+([+-]?\d+\.\d)\]")
EARLIER = {(0.3, 2.4), (1.9, 5.6), (-2.0, -0.4)}
"""Of an earlier base: their commit is named, and their results are not in the repository any more."""


def measured() -> set[tuple[float, float]]:
    return {
        ends for file in (ROOT / "studies/results").glob("*.json") for ends in intervals(json.loads(file.read_text()))
    }


def intervals(value: Any) -> Iterator[tuple[float, float]]:
    if isinstance(value, dict) and {"low", "high"} <= set(value):
        yield value["low"], value["high"]
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from intervals(each)


def written(text: str) -> set[tuple[float, float]]:
    return {(float(low), float(high)) for low, high in INTERVAL.findall(text)}


def is_among(ends: tuple[float, float], found: set[tuple[float, float]]) -> bool:
    """Whether it is one of them rounded, or of the opposite difference, as of what something costs."""
    opposite = (-ends[1], -ends[0])
    return any(
        all(abs(a - b) < 0.0501 for a, b in zip(own, each, strict=True)) for own in (ends, opposite) for each in found
    )


def test_every_interval_of_the_findings_is_one_of_the_results():
    stated, found = written((ROOT / "docs/findings.md").read_text()), measured()
    assert len(stated) > 50
    assert {ends for ends in stated - EARLIER if not is_among(ends, found)} == set()


def test_every_interval_that_the_readme_tells_of_studies_is_one_of_the_findings():
    text = (ROOT / "README.md").read_text()
    told = written(
        "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    )  # tables are of the default
    stated = written((ROOT / "docs/findings.md").read_text())
    assert told
    assert {ends for ends in told if not is_among(ends, stated)} == set()


def test_an_interval_that_was_not_measured_is_found():
    assert not is_among((1.0, 2.0), {(1.06, 2.0), (-1.0, 2.0)})
    assert is_among((1.0, 2.0), {(-2.04, -0.96)})
