"""Measuring one cell, in a form that can be sent to another process."""

import importlib
import shutil
import time
import traceback
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import is_expected
from pipelines.schema.running import Compute
from pipelines.studies.cells import Cell, CellContext, Result
from pipelines.studies.store import ResultStore


@dataclass(frozen=True)
class CellTask:
    """A cell with what it may read. `code` is the module of its function; `needs` are the folders of the cells it needs."""

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
    """A cell's result, or the reason for having none."""

    result: Result | None
    reason: str | None = None


def measure(task: CellTask, cache: dict[Hashable, Any]) -> Outcome:
    """Measure the cell and keep its result, unless it exists: an earlier cell may have measured the same.

    Any exception is an outcome too: it is reported, and the other cells are still measured.
    """
    from pipelines.engine.ray_cluster import device_of

    result = task.store.read(task.identity)
    if result is not None:
        return Outcome(result)
    context = CellContext(
        parameters=task.parameters,
        inputs=task.inputs,
        needs=task.needs,
        folder=task.store.folder(task.identity),
        device=device_of(task.compute),
        cache=cache,
    )
    shutil.rmtree(context.files, ignore_errors=True)  # left by a process that was killed
    began = time.process_time()
    try:
        result = getattr(importlib.import_module(task.code), task.cell.function)(task.cell, context)
        task.store.write(task.cell, task.identity, result, time.process_time() - began)
    except Exception as error:  # whatever it is, it is reported
        if not is_expected(error):
            traceback.print_exc()
        return Outcome(None, str(error) or type(error).__name__)
    return Outcome(result)
