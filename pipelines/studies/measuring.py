"""One cell measured: everything that takes, in a form that can travel to another process."""

import importlib
import shutil
import traceback
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import is_expected
from pipelines.schema.running import Compute
from pipelines.studies.cells import Bench, Cell, Result
from pipelines.studies.store import ResultStore


@dataclass(frozen=True)
class Job:
    """A cell with what it may read. `code` is the module of the functions that cells name; `needs` are the folders of cells."""

    cell: Cell
    identity: str
    code: str
    store: ResultStore
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Path]
    needs: Mapping[str, Path]
    compute: Compute


@dataclass(frozen=True)
class Outcome:
    """A cell's result, or why there is none."""

    result: Result | None
    reason: str | None = None


def measure(job: Job, shelf: dict[Hashable, Any]) -> Outcome:
    """Measure the cell and keep its result, unless it is there: a cell before it may have asked for the same.

    A failure is an outcome and not an exception, whatever it is: it is reported, and the other cells are worth having.
    """
    from pipelines.engine.ray_cluster import device_of

    result = job.store.read(job.identity)
    if result is not None:
        return Outcome(result)
    bench = Bench(
        parameters=job.parameters,
        inputs=job.inputs,
        needs=job.needs,
        folder=job.store.folder(job.identity),
        device=device_of(job.compute),
        shelf=shelf,
    )
    shutil.rmtree(bench.files, ignore_errors=True)  # of a cell that was killed
    try:
        result = getattr(importlib.import_module(job.code), job.cell.work)(job.cell, bench)
        job.store.write(job.cell, job.identity, result)
    except Exception as error:  # whatever it is: it is reported, and the other cells are worth having
        if not is_expected(error):
            traceback.print_exc()
        return Outcome(None, str(error) or type(error).__name__)
    return Outcome(result)
