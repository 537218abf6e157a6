"""Compares two results of one stage, metric by metric and file by file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.scratch.manifest import Manifest
from pipelines.tracking.runs import flatten


@dataclass(frozen=True)
class MetricPair:
    """A metric of both results, None where it is missing. `difference` is now - then, None unless both are numbers."""

    name: str
    then: Any
    now: Any

    @property
    def same(self) -> bool:
        both = isinstance(self.then, float) and isinstance(self.now, float)
        return bool(self.then == self.now) or (both and math.isnan(self.then) and math.isnan(self.now))

    @property
    def difference(self) -> float | None:
        numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (self.then, self.now))
        return float(self.now) - float(self.then) if numbers else None


@dataclass(frozen=True)
class ResultComparison:
    """A stage run and its reproduction. `files` says for each output whether its bytes are equal; `causes` names changed inputs."""

    address: str
    numbers: tuple[MetricPair, ...]
    files: Mapping[str, bool]
    causes: tuple[str, ...]

    @property
    def same(self) -> bool:
        return all(number.same for number in self.numbers) and all(self.files.values())


def compare(then: Manifest, now: Manifest) -> ResultComparison:
    """Compare two manifests of the same stage."""
    old, new = flatten(then.metrics), flatten(now.metrics)
    numbers = tuple(MetricPair(name, old.get(name), new.get(name)) for name in sorted({*old, *new}))
    before, after = _files(then), _files(now)
    files = {name: before.get(name) == after.get(name) for name in sorted({*before, *after})}
    return ResultComparison(then.stage, numbers, files, tuple(_causes(then, now)))


def _files(manifest: Manifest) -> dict[str, str]:
    outputs = manifest.outputs.items()
    return {f"{path}/{name}" if name else path: value for path, files in outputs for name, value in files.items()}


def _causes(then: Manifest, now: Manifest) -> list[str]:
    """Return the parts of the fingerprint that differ."""
    before, after = then.provenance, now.provenance
    if then.fingerprint == now.fingerprint or before is None or after is None:
        return []
    parts = [part for part, value in before.fingerprinted.items() if value != after.fingerprinted[part]]
    old = {path: record.sha256 for path, record in before.inputs.items()}
    new = {path: record.sha256 for path, record in after.inputs.items()}
    return [*parts, *sorted(path for path in {*old, *new} if old.get(path) != new.get(path))]


def show(comparison: ResultComparison) -> None:
    """Print one line per metric and one per file."""
    from pipelines.terminal.console import TableConsole
    from pipelines.terminal.tables import number_table

    rows = []
    for number in comparison.numbers:
        by = "same" if number.same else "different" if number.difference is None else f"{number.difference:+.6g}"
        rows.append((number.name, _word(number.then), _word(number.now), by))
    for name, equal in comparison.files.items():
        rows.append((name, "", "", "same bytes" if equal else "different bytes"))
    console = TableConsole()
    console.print(number_table(comparison.address, ("number", "then", "now", "difference"), rows))
    same = sum(number.same for number in comparison.numbers)
    console.print(
        f"{comparison.address}: {same} of {len(comparison.numbers)} numbers and "
        f"{sum(comparison.files.values())} of {len(comparison.files)} files are the same",
        highlight=False,
    )
    if comparison.causes:
        console.print(f"the fingerprint differs: other {', '.join(comparison.causes)}", highlight=False)


def _word(value: Any) -> str:
    return "none" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)
