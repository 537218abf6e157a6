"""What a study is made of: cells, each one measurement with its own settings, inputs and kept result."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.params import Parameters
from pipelines.schema.section import Section

if TYPE_CHECKING:
    import torch

    from pipelines.engine.context import StageContext

Result = Mapping[str, Any]
"""JSON values. Numbers and strings at the top level are committed; lists and mappings stay in the scratch root, for the summary."""
Made = TypeVar("Made")


@dataclass(frozen=True)
class Cell:
    """One measurement. Two cells that ask for the same, under whatever keys, share one result."""

    key: str
    """Its name in lists, patterns and results: `map/gamma-1.2/threshold-0.8/guidance-1/seed-0`."""
    work: str
    """The function in the study's cells file that measures it."""
    settings: Mapping[str, Any]
    """What that function is told, as flat JSON values."""
    reads: tuple[str, ...]
    """Top-level keys of params.yaml that the result depends on."""
    inputs: Mapping[str, str]
    """Files and folders that it reads, by name; relative to the workspace, POSIX."""
    needs: tuple[str, ...] = ()
    """Keys of cells whose files it reads."""


@dataclass(frozen=True)
class Study:
    """What a study's module brings, as `STUDY`."""

    plan: type[Section]
    """The schema of `studies/<name>.yaml`."""
    cells: Callable[[Any, Parameters], Sequence[Cell]]
    """(plan, parameters) -> every cell, those that others need before them."""
    summarise: Callable[[Any, Parameters, Mapping[str, Result]], dict[str, Any]]
    """(plan, parameters, key -> result of the cells that are done) -> JSON values. Copes with any subset of cells."""
    code: str
    """The module with the functions that `Cell.work` names: `(cell, bench) -> Result`. Results depend on what it imports."""
    threads: int | None = None
    """Of the process that measures a cell; None takes compute.threads. Small models gain most from one, and more processes."""


@dataclass(frozen=True)
class Bench:
    """Where one cell is measured: what it may read, and where it keeps what it makes."""

    parameters: Mapping[str, Any]
    """The sections of params.yaml that the cell declares, as plain values."""
    inputs: Mapping[str, Path]
    needs: Mapping[str, Path]
    """key -> folder of the files that a needed cell kept."""
    folder: Path
    """Scratch of this cell alone: what is left in `files` is kept with the result, checkpoints until there is one."""
    device: "torch.device"
    shelf: dict[Hashable, Any] = field(default_factory=dict)
    """Shared by all cells of a run."""

    @property
    def files(self) -> Path:
        return self.folder / "files"

    def params(self, **replaced: Any) -> Parameters:
        """The declared sections, and `replaced` in addition or in their place. Anything else is not there."""
        return Parameters.partial({**self.parameters, **replaced})

    def context(self, seed: int, arm: str | None = None) -> "StageContext":
        """Surroundings of a training run, as in a stage: it goes on from its last checkpoint after a kill."""
        from pipelines.engine.context import StageContext
        from pipelines.scratch.folder import Scratch

        self.folder.mkdir(parents=True, exist_ok=True)
        return StageContext(Scratch(self.folder), seed=seed, arm=arm, device=self.device)

    def shared(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives, made by the first cell of a run that asks for `key`: a loaded model, not a result."""
        if key not in self.shelf:
            self.shelf[key] = make()
        return self.shelf[key]
