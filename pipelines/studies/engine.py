"""Running a study.

    studies/<name>.yaml -> cells -> measure those without a kept result -> studies/results/<name>.json

Cells are measured one after another, or several at once in processes of their own (`workers.py`), with the same bytes. A kill costs
at most the cells that were being measured; the same command continues with the rest. A cell that fails is reported, the others are
measured, and the command ends with exit code 1. The results file is written at the end, also after an interrupt, from all results;
it holds neither times nor machines, so the same results give the same bytes.
"""

import importlib
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from components.errors import DataError, ParameterError
from components.files import write_atomically
from pipelines import params
from pipelines.errors import OTHER, StageFailedError
from pipelines.params import Parameters
from pipelines.schema.reading import read
from pipelines.schema.section import Section
from pipelines.studies.cells import Cell, Result, Study
from pipelines.studies.identity import fingerprints, input_digests, provenance
from pipelines.studies.measuring import CellTask, Outcome, measure
from pipelines.studies.progress import StudyProgress
from pipelines.studies.store import ResultStore
from pipelines.studies.workers import measure_together
from pipelines.threads.cores import warn_of_too_many_threads
from pipelines.threads.settings import thread_settings
from pipelines.workspace import Workspace

FOLDER, RESULTS = "studies", "studies/results"
BESIDE = "results/studies"
"""For results that do not replace those in RESULTS, which git has; git ignores this folder."""


@dataclass(frozen=True)
class Opened:
    """A study in one workspace. `cells` has every cell after those it needs; `identities` are the fingerprints by key."""

    name: str
    study: Study
    plan: Section
    params: Parameters
    workspace: Workspace
    cells: Sequence[Cell]
    identities: Mapping[str, str]
    store: ResultStore

    @property
    def threads(self) -> int:
        """Threads of each process that measures, on which results depend: the study's, or else those of params.yaml."""
        return self.study.threads or self.params.compute.threads

    def done(self) -> dict[str, Result]:
        """Return the kept results by key, in the order of the cells."""
        kept = {cell.key: self.store.read(self.identities[cell.key]) for cell in self.cells}
        return {key: result for key, result in kept.items() if result is not None}

    def chosen(self, pattern: str | None) -> list[Cell]:
        """Return the cells whose key matches a shell pattern, and those they need. Raises ParameterError when none matches."""
        wanted = {cell.key for cell in self.cells if pattern is None or fnmatchcase(cell.key, pattern)}
        if not wanted:
            raise ParameterError(f"study {self.name}: no cell matches {pattern!r}; `--list` shows them")
        for cell in reversed(self.cells):
            if cell.key in wanted:
                wanted.update(cell.needs)
        return [cell for cell in self.cells if cell.key in wanted]


def open_study(name: str, workspace: Workspace, study: Study | None = None) -> Opened:
    """Read the study's plan and the parameters, and fingerprint every cell.

    `study` defaults to `STUDY` of the module `pipelines.studies.<name>`. Raises ParameterError for an unknown study or a
    mistake in its plan, DataError for an input that is not there.
    """
    file = workspace.path(f"{FOLDER}/{name}.yaml")
    if not file.is_file():
        known = sorted(path.stem for path in workspace.path(FOLDER).glob("*.yaml"))
        raise ParameterError(f"study {name!r} does not exist: one of {', '.join(known) or 'none'}")
    settings = params.load(workspace.path("params.yaml"))
    found = study or importlib.import_module(f"pipelines.studies.{name}").STUDY
    threads = found.threads or settings.compute.threads
    os.environ.update(thread_settings(threads))  # before any library is imported
    plan = read(file, found.plan, f"{FOLDER}/{file.name}")
    cells = list(found.cells(plan, settings))
    _require_order(cells)
    _require_inputs(name, cells, workspace)
    identities = fingerprints(cells, found.code, settings, workspace, threads)
    store = ResultStore(workspace.home / FOLDER / name)
    return Opened(name, found, plan, settings, workspace, cells, identities, store)


def run_study(opened: Opened, only: str | None = None, workers: int = 1) -> Path:
    """Measure the chosen cells without a result, `workers` at once, then write the results file, which replaces no fuller one.

    Raises ParameterError for no workers, StageFailedError (exit code 1) when a cell failed, having measured the others,
    KeyboardInterrupt after an interrupt, having written the results so far.
    """
    if workers < 1:
        raise ParameterError(f"study {opened.name}: --workers {workers}: give 1 or more")
    chosen = opened.chosen(only)
    with opened.store.lock():
        try:
            failed = _measure(opened, chosen, workers)
        finally:
            path = write_results(opened, replace=False)
    if failed:
        raise StageFailedError(f"study {opened.name}: {len(failed)} of {len(chosen)} cells failed", OTHER)
    return path


def list_cells(opened: Opened, only: str | None = None) -> None:
    """Print one line per chosen cell: whether it is done, and its key."""
    done = opened.done()
    chosen = opened.chosen(only)
    for cell in chosen:
        print(f"{'done ' if cell.key in done else 'to do'}  {cell.key}")
    print(f"{sum(cell.key in done for cell in chosen)} of {len(chosen)} done")


def write_results(opened: Opened, *, replace: bool = True) -> Path:
    """Write `studies/results/<name>.json` from the results so far, without measuring. Returns the path.

    Without `replace`, a file there that has cells which these results lack, or is of another plan or other parameters, stays as it
    is, and these results are written to `results/studies/<name>.json`.
    """
    done = opened.done()
    reads = sorted({key for cell in opened.cells for key in cell.reads})
    document = {
        "study": opened.name,
        **provenance(opened.study.code, opened.workspace.path(f"{FOLDER}/{opened.name}.yaml")),
        "done": len(done),
        "of": len(opened.cells),
        "plan": opened.plan.model_dump(mode="json"),
        "parameters": opened.params.only(reads),
        "inputs": input_digests(opened.cells, opened.workspace),
        "cells": [
            {
                "key": cell.key,
                "fingerprint": opened.identities[cell.key][:16],
                "settings": dict(cell.settings),
                "result": {k: v for k, v in done[cell.key].items() if isinstance(v, str | int | float)},
            }
            for cell in sorted(opened.cells, key=lambda cell: cell.key)
            if cell.key in done
        ],
        "summary": opened.study.summarise(opened.plan, opened.params, done),
    }
    document = _rounded(document)
    path = opened.workspace.path(f"{RESULTS}/{opened.name}.json")
    reason = None if replace else _why_kept(path, document)
    if reason:
        print(f"{path}: stays, as it {reason}; `study {opened.name} --summary` replaces it", flush=True)
        path = opened.workspace.path(f"{BESIDE}/{opened.name}.json")
    write_atomically(path, json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n")
    print(f"wrote {path}: {len(done)} of {len(opened.cells)} cells", flush=True)
    return path


def _why_kept(path: Path, document: Mapping[str, Any]) -> str | None:
    """Return why the results at `path` are not replaced by `document`; None when nothing is lost by it."""
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        missing = {cell["key"] for cell in there["cells"]} - {cell["key"] for cell in document["cells"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if missing:
        return f"has {len(missing)} cells that these results lack"
    changed = [name for name in ("plan", "parameters") if there.get(name) != document[name]]
    return f"is of other {' and '.join(changed)}" if changed else None


def _measure(opened: Opened, chosen: Sequence[Cell], workers: int) -> list[str]:
    """Measure the cells of `chosen` that have no result. Returns the keys of those that failed."""
    ready = {cell.key for cell in chosen if opened.store.read(opened.identities[cell.key]) is not None}
    todo = [_task(opened, cell) for cell in chosen if cell.key not in ready]
    print(f"study {opened.name}: {len(chosen)} cells, {len(ready)} done before", flush=True)
    if not todo:
        return []
    warn_of_too_many_threads(opened.threads)
    with StudyProgress(len(todo)) as progress:
        if workers > 1:
            return measure_together(todo, workers, opened.threads, progress)
        return _measure_here(todo, opened.threads, progress)


def _measure_here(tasks: Sequence[CellTask], threads: int, progress: StudyProgress) -> list[str]:
    """Measure in this process, one after another. Returns the keys of those that failed."""
    import torch

    torch.set_num_threads(threads)
    failed: list[str] = []
    cache: dict[Hashable, Any] = {}
    for task in tasks:
        progress.begin(task.cell.key)
        missing = [key for key in task.cell.needs if key in failed]
        outcome = Outcome(None, f"needs {missing[0]}") if missing else measure(task, cache)
        if outcome.result is None:
            failed.append(task.cell.key)
            progress.failed(task.cell.key, str(outcome.reason))
        else:
            progress.done(task.cell.key, outcome.result)
    return failed


def _task(opened: Opened, cell: Cell) -> CellTask:
    return CellTask(
        cell=cell,
        identity=opened.identities[cell.key],
        code=opened.study.code,
        store=opened.store,
        parameters=opened.params.only(cell.reads),
        inputs={name: opened.workspace.path(path) for name, path in cell.inputs.items()},
        needs={key: opened.store.files(opened.identities[key]) for key in cell.needs},
        compute=opened.params.compute,
    )


def _require_order(cells: Sequence[Cell]) -> None:
    seen: set[str] = set()
    for cell in cells:
        if cell.key in seen or not seen.issuperset(cell.needs):
            raise RuntimeError(f"cell {cell.key}: listed twice, or before one that it needs ({', '.join(cell.needs)})")
        seen.add(cell.key)


def _require_inputs(name: str, cells: Sequence[Cell], workspace: Workspace) -> None:
    paths = sorted({path for cell in cells for path in cell.inputs.values()})
    missing = [path for path in paths if not workspace.path(path).exists()]
    if missing:
        raise DataError(f"study {name}: {', '.join(missing)} not there: run `dvc repro`, or `dvc pull`")


def _rounded(value: Any) -> Any:
    """Round floats to 6 significant digits, which is enough for a reader and keeps diffs short."""
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
