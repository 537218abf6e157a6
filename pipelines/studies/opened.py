"""A study in one workspace: its cells, which of them are done, and what they cost."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from components.errors import ParameterError
from pipelines.params import Parameters
from pipelines.schema.section import Section
from pipelines.studies.cells import Cell, Phase, Result, Study
from pipelines.studies.plans import StudyPlan
from pipelines.studies.store import ResultStore
from pipelines.workspace import Workspace

FOLDER = "studies"


@dataclass(frozen=True)
class Opened:
    """A study in one workspace. `cells` has every cell after those it needs; `identities` are the fingerprints by key.

    Where it was opened without its inputs, there are no identities and so no results: `missing` says in one line what is not there.
    """

    name: str
    study: Study
    plan: Section
    params: Parameters
    workspace: Workspace
    cells: Sequence[Cell]
    identities: Mapping[str, str]
    store: ResultStore
    missing: str | None = None

    @property
    def plan_file(self) -> Path:
        return self.workspace.path(f"{FOLDER}/{self.name}.yaml")

    @property
    def threads(self) -> int:
        """Threads of each process that measures, on which results depend: the study's, or else those of params.yaml."""
        return self.study.threads or self.params.compute.threads

    def done(self) -> dict[str, Result]:
        """Return the kept results by key, in the order of the cells."""
        kept = {cell.key: self.store.read(self.identities[cell.key]) for cell in self.cells if self.identities}
        return {key: result for key, result in kept.items() if result is not None}

    def chosen(self, pattern: str | None, phases: Collection[Phase] = ()) -> list[Cell]:
        """Return the cells of these phases (none: of all) whose key matches a shell pattern, and those they need.

        Raises ParameterError when there is none.
        """
        of_phase = [cell for cell in self.cells if not phases or cell.phase in phases]
        if not of_phase:
            has = ", ".join(dict.fromkeys(cell.phase for cell in self.cells))
            raise ParameterError(f"study {self.name}: it has no {' or '.join(phases)}, only: {has}")
        wanted = {cell.key for cell in of_phase if pattern is None or fnmatchcase(cell.key, pattern)}
        if not wanted:
            raise ParameterError(f"study {self.name}: no cell matches {pattern!r}; `--list` shows them")
        for cell in reversed(self.cells):
            if cell.key in wanted:
                wanted.update(cell.needs)
        return [cell for cell in self.cells if cell.key in wanted]

    def cost(self) -> dict[str, Any]:
        """Return the processor seconds that the kept results took, and by function those of one cell.

        Cells that share a result count once, and a cell that was interrupted from its last start.
        """
        seconds: dict[str, list[float]] = {}
        for identity, cell in {self.identities[cell.key]: cell for cell in self.cells if self.identities}.items():
            if (spent := self.store.seconds(identity)) is not None:
                seconds.setdefault(cell.function, []).append(spent)
        return {
            "processor_seconds": round(sum(map(sum, seconds.values())), 1),
            "by_function": {
                name: {"cells": len(each), "processor_seconds_each": round(sum(each) / len(each), 1)}
                for name, each in sorted(seconds.items())
            },
        }

    def estimate(self, cells: Sequence[Cell]) -> float | None:
        """Return the processor seconds that measuring `cells` will take by the plan's `cost`; None where it does not say."""
        costs = self.plan.cost if isinstance(self.plan, StudyPlan) else {}
        ways = {self.identities.get(cell.key, cell.key): cell.function for cell in cells}
        if not set(ways.values()) <= set(costs):
            return None
        return sum(costs[function] for function in ways.values())
