"""Intervals of docs/findings.md and README.md, and the means before them, are those of studies/results."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NUMBER = r"([+-]?\d+\.\d)"
INTERVAL = re.compile(rf"(?:(?<![\d.]){NUMBER}\s+)?\[{NUMBER},\s+{NUMBER}\]")
OTHER_MEANS = "## Every method and score"
"""From here on the number before an interval may be an arm's R@1, not its mean."""
Numbers = tuple[float | None, float, float]
"""(mean, low, high); the mean may not be known."""
EARLIER: set[Numbers] = {
    *((1.3, 0.3, 2.4), (-1.2, -2.0, -0.4)),  # at commit c83a0e43
    *((2.8, 1.8, 3.7), (0.8, 0.1, 1.6), (-0.8, -1.3, -0.3)),  # at commit d9a96bfe
}
"""Of earlier bases: their commits are named, and their results are not in the repository any more."""


def measured() -> set[Numbers]:
    files = (ROOT / "studies/results").glob("*.json")
    return {found for file in files for found in intervals(json.loads(file.read_text()))}


def intervals(value: Any) -> Iterator[Numbers]:
    if isinstance(value, dict) and {"low", "high"} <= set(value):
        yield value.get("mean"), value["low"], value["high"]
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from intervals(each)


def written(text: str) -> set[Numbers]:
    """The intervals of a text, each with the number before it."""
    own, _, others = text.partition(OTHER_MEANS)
    found: set[Numbers] = {(float(m) if m else None, float(low), float(high)) for m, low, high in INTERVAL.findall(own)}
    return found | {(None, float(low), float(high)) for _, low, high in INTERVAL.findall(others)}


def is_among(stated: Numbers, found: set[Numbers]) -> bool:
    """Whether it is one of them rounded, or the opposite of one, as of what something costs."""
    mean, low, high = stated
    opposite = (None if mean is None else -mean, -high, -low)
    return any(
        all(a is None or b is None or abs(a - b) < 0.0501 for a, b in zip(own, each, strict=True))
        for own in (stated, opposite)
        for each in found
    )


def test_every_interval_of_the_findings_is_one_of_the_results():
    stated, found = written((ROOT / "docs/findings.md").read_text()), measured()
    assert sum(mean is not None for mean, *_ in stated) > 50
    assert {each for each in stated - EARLIER if not is_among(each, found)} == set()


def test_every_interval_that_the_readme_tells_of_studies_is_one_of_the_findings():
    text = (ROOT / "README.md").read_text()
    told = written(
        "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    )  # tables are of the default
    stated = written((ROOT / "docs/findings.md").read_text())
    assert told
    assert {each for each in told if not is_among(each, stated)} == set()


def test_an_interval_that_was_not_measured_is_found():
    assert not is_among((1.5, 1.0, 2.0), {(1.5, 1.06, 2.0), (0.5, 1.0, 2.0), (1.6, 1.0, 2.0)})
    assert is_among((None, 1.0, 2.0), {(1.6, 1.0, 2.0)})
    assert is_among((1.5, 1.0, 2.0), {(-1.46, -2.04, -0.96)})
    assert not is_among((-1.5, 1.0, 2.0), {(1.5, 1.0, 2.0)})
