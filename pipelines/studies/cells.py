"""The parts of a study: cells, each one measurement with its own settings, inputs and kept result."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pipelines.params import Parameters
from pipelines.schema.section import Section

if TYPE_CHECKING:
    import torch

    from pipelines.engine.context import StageContext


Phase = Literal["screen", "confirm", "curve"]
"""What a cell is measured for: to look for differences, to confirm the contrasts named beforehand on fresh seeds, or to show what
more training gives."""
Result = Mapping[str, Any]
"""JSON values. Numbers and strings at the top level are committed; lists and mappings stay in scratch, for the summary."""
Made = TypeVar("Made")


@dataclass(frozen=True)
class Cell:
    """One measurement. Cells that measure the same under different keys share one result."""

    key: str
    """Its name in lists, patterns and results: `map/gamma-1.2/threshold-0.8/guidance-1/seed-0`."""
    function: str
    """Name of the function in the study's cells file that measures it."""
    settings: Mapping[str, Any]
    """Settings for that function, as flat JSON values."""
    reads: tuple[str, ...]
    """Top-level keys of params.yaml that the result depends on."""
    inputs: Mapping[str, str]
    """Files and folders that it reads, by name; POSIX paths relative to the workspace."""
    needs: tuple[str, ...] = ()
    """Keys of the cells whose files it reads."""
    phase: Phase = "screen"


@dataclass(frozen=True)
class Study:
    """The definition of a study: `STUDY` in its module."""

    plan: type[Section]
    """The schema of `studies/<name>.yaml`."""
    cells: Callable[[Any, Parameters], Sequence[Cell]]
    """(plan, parameters) -> every cell, each after those it needs."""
    summarise: Callable[[Any, Parameters, Mapping[str, Result]], dict[str, Any]]
    """(plan, parameters, key -> result of the finished cells) -> JSON values. Accepts any subset of cells."""
    code: str
    """The module with the functions that cells name: `(cell, context) -> Result`. Results depend on what it imports."""
    threads: int | None = None
    """Threads of the process that measures a cell; None takes compute.threads. Small models are fastest with one."""
    require: Callable[[Any, Parameters, Path], None] | None = None
    """(plan, parameters, root of the workspace): raises ParameterError or DataError where nothing may be measured as it is."""


@dataclass(frozen=True)
class CellContext:
    """The context of one cell: what it may read, its scratch folder, its device."""

    parameters: Mapping[str, Any]
    """The sections of params.yaml that the cell declares, as plain values."""
    inputs: Mapping[str, Path]
    needs: Mapping[str, Path]
    """Key -> folder of the files that a needed cell kept."""
    folder: Path
    """Scratch folder of this cell; `files` in it is kept with the result, checkpoints are deleted then."""
    device: "torch.device"
    cache: dict[Hashable, Any] = field(default_factory=dict)
    """Objects shared by all cells of a run."""

    @property
    def files(self) -> Path:
        return self.folder / "files"

    def params(self, **replaced: Any) -> Parameters:
        """Return the declared sections as parameters, updated with `replaced`. No other section can be read."""
        return Parameters.partial({**self.parameters, **replaced})

    def training_context(self, seed: int, arm: str | None = None) -> "StageContext":
        """Return the context of a training run, as in a stage: it resumes from its last checkpoint after a kill."""
        from pipelines.engine.context import StageContext
        from pipelines.scratch.folder import Scratch

        self.folder.mkdir(parents=True, exist_ok=True)
        return StageContext(Scratch(self.folder), seed=seed, arm=arm, device=self.device)

    def shared(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what `make` returned for the first cell of a run with `key`: a loaded model, not a result."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]
