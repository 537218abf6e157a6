"""Cells measured by several processes at once.

The scheduler stays in the process that holds the study's lock: it hands a free worker the first cell whose needs are there, one
at a time, so that workers share nothing but the store of results. A result does not depend on which worker measured it, or
beside what. Two cells that ask for the same are never measured at once. A worker that dies costs its cell; workers end with the
scheduler, however it ends.
"""

import multiprocessing
import signal
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from pipelines.engine.parent import end_with_parent
from pipelines.studies.measuring import Job, Outcome, measure
from pipelines.studies.progress import Teller


@dataclass
class _Worker:
    process: SpawnProcess
    line: Connection
    job: Job | None = None


def measure_together(jobs: Sequence[Job], number: int, threads: int, teller: Teller) -> list[str]:
    """Measure `jobs` with `number` processes of `threads` threads each. Returns the keys of cells that failed, in their order.

    Jobs come after those that they need; a need that is not among them is there already.
    """
    workers = [_start(threads) for _ in range(min(number, len(jobs)))]
    waiting = list(jobs)
    settled: dict[str, bool] = {}  # key -> whether it failed
    try:
        while waiting or any(worker.job for worker in workers):
            for worker in workers:
                if worker.job is None and (job := _next(waiting, settled, workers, teller)):
                    waiting.remove(job)
                    teller.begin(job.cell.key)
                    worker.job = job
                    worker.line.send(job)
            busy = [worker for worker in workers if worker.job]
            if not busy:
                break  # what was left needs a cell that failed
            heard = wait([worker.line for worker in busy])
            for place, worker in enumerate(workers):
                if worker.line in heard and worker.job is not None:
                    job, outcome = worker.job, _answer(worker)
                    settled[job.cell.key] = _tell(job, outcome, teller)
                    workers[place] = worker if worker.process.is_alive() else _start(threads)
                    workers[place].job = None
    finally:
        for worker in workers:
            worker.line.close()  # an idle one ends by itself
            if worker.job:
                worker.process.kill()  # interrupted with the cell that it measures
        for worker in workers:
            worker.process.join()
    return [job.cell.key for job in jobs if settled.get(job.cell.key)]


def _next(waiting: list[Job], settled: dict[str, bool], workers: Sequence[_Worker], teller: Teller) -> Job | None:
    """The first job that can be measured now. Those that need a failed cell are told of and dropped."""
    known = {job.cell.key for job in waiting} | {worker.job.cell.key for worker in workers if worker.job}
    measured = {worker.job.identity for worker in workers if worker.job}
    for job in list(waiting):
        if missing := [key for key in job.cell.needs if settled.get(key)]:
            waiting.remove(job)
            known.discard(job.cell.key)
            settled[job.cell.key] = _tell(job, Outcome(None, f"needs {missing[0]}"), teller)
        elif job.identity not in measured and not known.intersection(job.cell.needs):
            return job
    return None


def _tell(job: Job, outcome: Outcome, teller: Teller) -> bool:
    """Say how a cell went; returns whether it failed."""
    if outcome.result is None:
        teller.failed(job.cell.key, str(outcome.reason))
        return True
    teller.done(job.cell.key, outcome.result)
    return False


def _start(threads: int) -> _Worker:
    spawn = multiprocessing.get_context("spawn")
    mine, its = spawn.Pipe()
    process = spawn.Process(target=_work, args=(its, threads), daemon=True)
    process.start()
    its.close()  # so that the line ends with the process
    return _Worker(process, mine)


def _answer(worker: _Worker) -> Outcome:
    try:
        outcome: Outcome = worker.line.recv()
        return outcome
    except EOFError:
        worker.process.join()
        return Outcome(None, f"its process ended with code {worker.process.exitcode}")


def _work(line: Connection, threads: int) -> None:
    """What a worker does: measure what it is sent until nobody is there to send."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the scheduler ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    import torch

    torch.set_num_threads(threads)
    shelf: dict[Hashable, Any] = {}
    while True:
        try:
            job = line.recv()
        except EOFError:
            return
        line.send(measure(job, shelf))
