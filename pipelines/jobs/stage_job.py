"""The entry point of a stage as a job: `python -m pipelines.jobs.stage_job STORAGE KEY`, in the frozen copy of the code.

Like `pipelines.engine.worker`, but with inputs and outputs in the storage. Its exit code is the stage's; `DONE.json` is written
last.
"""

import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import FrameType

from pipelines import graph
from pipelines.errors import report_error
from pipelines.jobs.task import JobTask, read_manifest, run_folder, write_manifest
from pipelines.params import kind_of
from pipelines.schema.running import Compute
from pipelines.scratch.folder import FolderLock, Scratch
from pipelines.scratch.manifest import ExecutionSite, JobManifest, RemoteExecution
from pipelines.scratch.spent import COST_FILE, GROUP_FILE, Spent, WorkerGroup
from pipelines.scratch.storage import Storage
from pipelines.threads.cores import warn_of_too_many_threads
from pipelines.threads.settings import thread_settings


def main(url: str, key: str) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        storage = Storage(url)
        task = JobTask.read(storage, key)
        compute = Compute(**task.compute)
        os.environ.update(thread_settings(compute.threads))  # before any library is imported
        warn_of_too_many_threads(compute.threads)
        with _lock(storage, key) as lock:
            if read_manifest(storage, key) is None:
                _stop_on_sigterm(storage, task)
                _run(storage, task, compute, lock)
    except BaseException as error:
        return report_error(error)
    return 0


def _run(storage: Storage, task: JobTask, compute: Compute, lock: FolderLock | None) -> None:
    from pipelines.engine import execution
    from pipelines.engine.cost import OF_ANY_WORKER, Meter
    from pipelines.jobs.folders import JobFolders
    from pipelines.records.stage_record import hardware, ray_ids

    run = graph.find(task.address)
    folders = JobFolders(storage, task, lock.lease.token if lock else None)
    folders.begin()
    own, by_ray = storage.path(run_folder(task.key)), bool(run.stage.trains and compute.workers)
    group = partial(_worker_group, storage, task.key)
    # Workers of Ray are processes on any node, of which this one cannot read more than the seconds.
    meter = Meter(_spent(storage, task.key, lock), group, here=True, only=OF_ANY_WORKER if by_ray else None)
    with meter.noted():
        metrics = execution.execute(run, folders.open, kind_of(run.stage).partial(task.parameters), compute, own)
    if lock:
        lock.require()
    workers = group()
    machine = workers.hardware if workers and workers.hardware else hardware()
    ran = RemoteExecution(cost=meter.total(), where=ExecutionSite(ray=ray_ids(), hardware=machine))
    write_manifest(storage, task.key, JobManifest(metrics=metrics, stage=task.address, ran=ran))
    for name in ("checkpoints", "metrics", "root", "writing", "figures", COST_FILE, GROUP_FILE):  # the outputs stay
        storage.delete(f"{run_folder(task.key)}/{name}")


def _spent(storage: Storage, key: str, lock: FolderLock | None) -> Spent:
    """Return what earlier attempts at a job have cost; notes go to the same file, as long as its folder is held."""
    file = f"{run_folder(key)}/{COST_FILE}"

    def write(text: str) -> None:
        if not (lock and lock.lease.lost):
            storage.write(file, text)

    return Spent(storage.read(file), write)


def _worker_group(storage: Storage, key: str) -> WorkerGroup | None:
    return WorkerGroup.parse(storage.read(f"{run_folder(key)}/{GROUP_FILE}"))


def _lock(storage: Storage, key: str) -> AbstractContextManager[FolderLock | None]:
    """Lock the scratch folder in a shared folder: a job that Ray believes dead must not run beside its successor."""
    return Scratch(storage.folder / run_folder(key)).lock() if storage.folder else nullcontext()


def _stop_on_sigterm(storage: Storage, task: JobTask) -> None:
    """Make training save a checkpoint at its next step and stop on SIGTERM: `ray job stop` waits 30 s."""
    if storage.folder is None or not graph.find(task.address).stage.trains:
        return
    stop_file = Scratch(storage.folder / run_folder(task.key)).stop_file

    def stopped(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a second one does not wait
        stop_file.touch()

    signal.signal(signal.SIGTERM, stopped)


if __name__ == "__main__":
    code = main(sys.argv[1], sys.argv[2])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skips slow clean-up of libraries; everything that matters is in the storage
