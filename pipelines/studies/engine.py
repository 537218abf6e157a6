"""Running a study.

    studies/<name>.yaml -> cells -> measure those without a kept result -> studies/results/<name>.json (results.py)

A cell belongs to a phase: `screen` looks for differences with few seeds, `confirm` measures the contrasts named beforehand on fresh
ones, `curve` trains longer. Cells are measured one after another, or several at once in processes of their own (`workers.py`), with
the same bytes. A kill costs at most the cells that were being measured; the same command continues with the rest. A cell that fails
is reported, the others are measured, and the command ends with exit code 1. The results file is written at the end, also after an
interrupt, from all results.
"""

import importlib
import os
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError, ParameterError
from pipelines import params
from pipelines.errors import OTHER, REPRO_COMMAND, StageFailedError, did_you_mean
from pipelines.schema.reading import checked, read_yaml
from pipelines.studies.cells import Cell, Phase, Study
from pipelines.studies.identity import fingerprints
from pipelines.studies.measuring import CellTask, Outcome, measure
from pipelines.studies.opened import FOLDER, Opened
from pipelines.studies.plans import kind_of
from pipelines.studies.progress import StudyProgress
from pipelines.studies.results import write_results
from pipelines.studies.store import ResultStore
from pipelines.studies.workers import measure_together
from pipelines.threads.cores import warn_of_too_many_threads
from pipelines.threads.settings import thread_settings
from pipelines.workspace import Workspace


def known(workspace: Workspace) -> dict[str, str]:
    """Return by name what each study asks. Raises ParameterError for a file that is not YAML."""
    files = sorted(workspace.path(FOLDER).glob("*.yaml"))
    return {file.stem: str((read_yaml(file) or {}).get("question", "")) for file in files}


def open_study(name: str, workspace: Workspace, study: Study | None = None, *, without_inputs: bool = False) -> Opened:
    """Read the study's plan and the parameters, and fingerprint every cell.

    `study` defaults to `STUDY` of the module of `pipelines.studies` that the plan names as its kind, by default that of its own
    name. Raises ParameterError for an unknown study or a mistake in its plan, DataError for an input that is not there;
    `without_inputs` opens the study all the same, to list what it would measure.
    """
    file = workspace.path(f"{FOLDER}/{name}.yaml")
    if not file.is_file():
        names = sorted(path.stem for path in workspace.path(FOLDER).glob("*.yaml"))
        listed = f"one of {', '.join(names) or 'none'}{did_you_mean(name, names)}"
        raise ParameterError(f"study {name!r} does not exist: {listed}")
    settings = params.load(workspace.path("params.yaml"))
    document = read_yaml(file)
    where = f"{FOLDER}/{file.name}"
    found = study or _study_of(kind_of(document, file), where)
    threads = found.threads or settings.compute.threads
    os.environ.update(thread_settings(threads))  # before any library is imported
    plan = checked(document, found.plan, where)
    cells = list(found.cells(plan, settings))
    _require_order(cells)
    missing = None
    try:
        if found.require:
            found.require(plan, settings, workspace.root)
        _require_inputs(workspace, cells)
    except (ParameterError, DataError) as error:
        missing = f"study {name}: {error}"
        if not without_inputs:
            raise type(error)(missing) from error
    identities = {} if missing else fingerprints(cells, found.code, settings, workspace, threads)
    store = ResultStore(workspace.home / FOLDER / name)
    return Opened(name, found, plan, settings, workspace, cells, identities, store, missing)


def _study_of(kind: str, where: str) -> Study:
    """Return the definition of a kind of study. Raises ParameterError where there is none."""
    kinds = sorted(
        file.stem for file in Path(__file__).parent.glob("*.py") if file.with_name(f"{file.stem}_cells.py").is_file()
    )
    if kind not in kinds:
        raise ParameterError(f"{where}: kind = {kind!r}: one of {', '.join(kinds)}")
    study: Study = importlib.import_module(f"pipelines.studies.{kind}").STUDY
    return study


def run_study(opened: Opened, only: str | None = None, workers: int = 1, phases: Collection[Phase] = ()) -> Path:
    """Measure the chosen cells without a result, `workers` at once, then write the results file, which replaces no fuller one.

    Raises ParameterError for no workers, StageFailedError (exit code 1) when a cell failed, having measured the others,
    KeyboardInterrupt after an interrupt, having written the results so far.
    """
    if workers < 1:
        raise ParameterError(f"study {opened.name}: --workers {workers}: give 1 or more")
    chosen = opened.chosen(only, phases)
    with opened.store.lock():
        try:
            failed = _measure(opened, chosen, workers)
        finally:
            path = write_results(opened, replace=False)
    if failed:
        raise StageFailedError(f"study {opened.name}: {len(failed)} of {len(chosen)} cells failed", OTHER)
    return path


def list_cells(opened: Opened, only: str | None = None, phases: Collection[Phase] = ()) -> None:
    """Print one line per chosen cell: whether it is done, and its key; then what the others will cost."""
    done = opened.done()
    chosen = opened.chosen(only, phases)
    for cell in chosen:
        print(f"{'done ' if cell.key in done else 'to do'}  {cell.key}")
    left = opened.estimate([cell for cell in chosen if cell.key not in done])
    cost = f"; about {left / 60:.0f} minutes of processor time to do" if left else ""
    print(f"{sum(cell.key in done for cell in chosen)} of {len(chosen)} done{cost}")
    if opened.missing:
        print(f"cannot be measured yet: {opened.missing}")


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


def _require_inputs(workspace: Workspace, cells: Sequence[Cell]) -> None:
    paths = sorted({path for cell in cells for path in cell.inputs.values()})
    missing = [path for path in paths if not workspace.path(path).exists()]
    if missing:
        raise DataError(f"{', '.join(missing)} not there: run `{REPRO_COMMAND}`, or `dvc pull`")
