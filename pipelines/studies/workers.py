"""Cells measured by several processes at once.

The scheduler runs in the process that holds the study's lock: it sends a free worker the first cell whose needs are there, one at a
time, so that workers share only the store of results. A result does not depend on the worker that measured it. Cells that measure
the same never run at once. A cell whose worker dies has failed; workers end with the scheduler.

Not `concurrent.futures`, where the death of one process breaks the whole pool; nor Ray, as for generation (`generating/pool.py`):
that takes seconds to start, and a study has to run on a laptop without it.
"""

import multiprocessing
import signal
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from pipelines.engine.parent import end_with_parent
from pipelines.engine.warm import silence_import_notices
from pipelines.studies.measuring import CellTask, Outcome, measure
from pipelines.studies.progress import StudyProgress


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    task: CellTask | None = None


def measure_together(tasks: Sequence[CellTask], number: int, threads: int, progress: StudyProgress) -> list[str]:
    """Measure cells with `number` processes of `threads` threads each. Returns the keys of cells that failed, in their order.

    Each cell comes after those that it needs; a need that is not in the list has a result already.
    """
    workers = [_start(threads) for _ in range(min(number, len(tasks)))]
    waiting = list(tasks)
    settled: dict[str, bool] = {}  # key -> whether it failed
    try:
        while waiting or any(worker.task for worker in workers):
            for worker in workers:
                if worker.task is None and (task := _next(waiting, settled, workers, progress)):
                    waiting.remove(task)
                    progress.begin(task.cell.key)
                    worker.task = task
                    worker.connection.send(task)
            busy = [worker for worker in workers if worker.task]
            if not busy:
                break  # what was left needs a cell that failed
            readable = wait([worker.connection for worker in busy])
            for index, worker in enumerate(workers):
                if worker.connection in readable and worker.task is not None:
                    task, outcome = worker.task, _answer(worker)
                    settled[task.cell.key] = _report(task, outcome, progress)
                    workers[index] = worker if worker.process.is_alive() else _start(threads)
                    workers[index].task = None
    finally:
        for worker in workers:
            worker.connection.close()  # an idle one ends by itself
            if worker.task:
                worker.process.kill()  # interrupted with the cell that it measures
        for worker in workers:
            worker.process.join()
    return [task.cell.key for task in tasks if settled.get(task.cell.key)]


def _next(
    waiting: list[CellTask], settled: dict[str, bool], workers: Sequence[_Worker], progress: StudyProgress
) -> CellTask | None:
    """Return the first cell that can be measured now. Cells that need a failed one are reported and dropped."""
    known = {task.cell.key for task in waiting} | {worker.task.cell.key for worker in workers if worker.task}
    measured = {worker.task.identity for worker in workers if worker.task}
    for task in list(waiting):
        if missing := [key for key in task.cell.needs if settled.get(key)]:
            waiting.remove(task)
            known.discard(task.cell.key)
            settled[task.cell.key] = _report(task, Outcome(None, f"needs {missing[0]}"), progress)
        elif task.identity not in measured and not known.intersection(task.cell.needs):
            return task
    return None


def _report(task: CellTask, outcome: Outcome, progress: StudyProgress) -> bool:
    """Show a cell's outcome; returns whether it failed."""
    if outcome.result is None:
        progress.failed(task.cell.key, str(outcome.reason))
        return True
    progress.done(task.cell.key, outcome.result)
    return False


def _start(threads: int) -> _Worker:
    spawn = multiprocessing.get_context("spawn")
    mine, its = spawn.Pipe()
    process = spawn.Process(target=_worker_main, args=(its, threads), daemon=True)
    process.start()
    its.close()  # so that the connection closes with the process
    return _Worker(process, mine)


def _answer(worker: _Worker) -> Outcome:
    try:
        outcome: Outcome = worker.connection.recv()
        return outcome
    except EOFError:
        worker.process.join()
        return Outcome(None, f"its process ended with code {worker.process.exitcode}")


def _worker_main(connection: Connection, threads: int) -> None:
    """Measure the cells that are sent through the connection until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the scheduler ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    silence_import_notices()
    import torch

    torch.set_num_threads(threads)
    cache: dict[Hashable, Any] = {}
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(measure(task, cache))
