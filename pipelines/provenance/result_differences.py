"""Two results of one stage, number by number and file by file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.records.manifests import Manifest
from pipelines.tracking.runs import flatten


@dataclass(frozen=True)
class Number:
    """A metric then and now; None where there is none. `difference` is now - then, None where that has no meaning."""

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
class Comparison:
    """A stage run and its repetition. `files` maps each output file to whether its bytes are the same; `causes` is what was not."""

    address: str
    numbers: tuple[Number, ...]
    files: Mapping[str, bool]
    causes: tuple[str, ...]

    @property
    def same(self) -> bool:
        return all(number.same for number in self.numbers) and all(self.files.values())


def compare(then: Manifest, now: Manifest) -> Comparison:
    """Of two DONE manifests of the same stage."""
    old, new = flatten(then["metrics"]), flatten(now["metrics"])
    numbers = tuple(Number(name, old.get(name), new.get(name)) for name in sorted({*old, *new}))
    before, after = _files(then), _files(now)
    files = {name: before.get(name) == after.get(name) for name in sorted({*before, *after})}
    return Comparison(then["stage"], numbers, files, tuple(_causes(then, now)))


def _files(manifest: Manifest) -> dict[str, str]:
    outputs: Mapping[str, Mapping[str, str]] = manifest["outputs"]
    return {
        f"{path}/{name}" if name else path: value for path, files in outputs.items() for name, value in files.items()
    }


def _causes(then: Manifest, now: Manifest) -> list[str]:
    """Which parts of the fingerprint differ: with the same fingerprint, none."""
    if then["fingerprint"] == now["fingerprint"]:
        return []
    before, after = then.get("provenance", {}), now.get("provenance", {})
    words = {"sources": "code", "parameters": "parameters", "lock": "requirements.lock", "threads": "threads"}
    causes = [word for key, word in words.items() if before.get(key) != after.get(key)]
    old = {path: record["sha256"] for path, record in before.get("inputs", {}).items()}
    new = {path: record["sha256"] for path, record in after.get("inputs", {}).items()}
    return [*causes, *sorted(path for path in {*old, *new} if old.get(path) != new.get(path))]


def show(comparison: Comparison) -> None:
    """Print it: a line a number, a line a file."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=comparison.address, title_justify="left")
    for heading, side in (("number", "left"), ("then", "right"), ("now", "right"), ("difference", "right")):
        table.add_column(heading, justify=side, overflow="fold")  # type: ignore[arg-type]
    for number in comparison.numbers:
        by = "same" if number.same else "another" if number.difference is None else f"{number.difference:+.6g}"
        table.add_row(escape(number.name), _word(number.then), _word(number.now), by)
    for name, equal in comparison.files.items():
        table.add_row(escape(name), "", "", "same bytes" if equal else "other bytes")
    console = Console()
    console.print(table)
    same = sum(number.same for number in comparison.numbers)
    console.print(
        f"{comparison.address}: {same} of {len(comparison.numbers)} numbers and "
        f"{sum(comparison.files.values())} of {len(comparison.files)} files are the same",
        highlight=False,
    )
    if comparison.causes:
        console.print(f"it was not the same run: other {', '.join(comparison.causes)}", highlight=False)


def _word(value: Any) -> str:
    return "none" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)
