"""A stage as a job: `python -m pipelines.jobs.entry STORAGE KEY`, in the frozen copy of the code.

It does what `pipelines.engine.worker` does, with inputs from the storage and outputs to it. Its exit code is the stage's;
`DONE.json` is written last.
"""

import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from types import FrameType

from pipelines import graph
from pipelines.engine.warm import thread_settings
from pipelines.errors import report_error
from pipelines.jobs.task import JobTask, read_manifest, run_folder, write_manifest
from pipelines.params import Compute, Parameters
from pipelines.scratch.folder import FolderLock, Scratch
from pipelines.scratch.manifest import ExecutionSite, JobManifest, RemoteExecution
from pipelines.scratch.storage import Storage

_OF_ANY_WORKER = ("cost/seconds", "cost/worker_seconds", "cost/gpu_seconds")


def main(url: str, key: str) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        storage = Storage(url)
        work = JobTask.read(storage, key)
        compute = Compute(**work.compute)
        os.environ.update(thread_settings(compute.threads))  # before any is imported
        with _lock(storage, key) as lock:
            if read_manifest(storage, key) is None:
                _leave_when_stopped(storage, work)
                _work(storage, work, compute, lock)
    except BaseException as error:
        return report_error(error)
    return 0


def _work(storage: Storage, work: JobTask, compute: Compute, lock: FolderLock | None) -> None:
    from pipelines.engine import execution
    from pipelines.engine.cost import Meter
    from pipelines.jobs.folders import JobFolders
    from pipelines.records.stage_record import hardware, ray_ids

    run = graph.find(work.address)
    site = JobFolders(storage, work)
    site.begin()
    own, meter = storage.path(run_folder(work.key)), Meter(here=True)
    metrics = execution.execute(run, site, Parameters.partial(work.parameters), compute, own)
    if lock:
        lock.require()
    cost = meter.read(run, compute)
    if run.stage.trains and compute.workers:  # processes of Ray on any node: this one cannot read theirs
        cost = {name: cost[name] for name in _OF_ANY_WORKER}
    ran = RemoteExecution(cost=cost, where=ExecutionSite(ray=ray_ids(), hardware=hardware()))
    write_manifest(storage, work.key, JobManifest(metrics=metrics, stage=work.address, ran=ran))
    for name in ("checkpoints", "root", "writing", "figures"):  # the outputs stay
        storage.delete(f"{run_folder(work.key)}/{name}")


def _lock(storage: Storage, key: str) -> AbstractContextManager[FolderLock | None]:
    """On a shared folder the lock of the scratch folder: a job that Ray believes dead must not work beside its successor."""
    return Scratch(storage.folder / run_folder(key)).lock() if storage.folder else nullcontext()


def _leave_when_stopped(storage: Storage, work: JobTask) -> None:
    """`ray job stop` gives 30 s: training saves a checkpoint at its next step and goes, as it does for the runner's SIGTERM."""
    if storage.folder is None or not graph.find(work.address).stage.trains:
        return
    stop_file = Scratch(storage.folder / run_folder(work.key)).stop_file

    def stopped(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a second one does not wait
        stop_file.touch()

    signal.signal(signal.SIGTERM, stopped)


if __name__ == "__main__":
    code = main(sys.argv[1], sys.argv[2])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skips slow clean-up of libraries; everything that matters is in the storage
