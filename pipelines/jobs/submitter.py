"""The process by which the runner gets a stage done on a cluster; to the runner it is a worker like `pipelines.engine.worker`.

It reads the same line, waits for the same "go", and leaves the same files in the scratch folder: metrics.jsonl while the job runs,
outputs, figures and result.json at the end. When it is told to end (Ctrl-C, SIGTERM) it stops the job. When the runner dies, it
goes and leaves the job running: the next run of the stage follows that job.
"""

import json
import os
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from components.files import file_digest, write_atomically
from pipelines import graph
from pipelines.engine.parent import end_with_parent
from pipelines.engine.worker import StageTask
from pipelines.errors import InfrastructureError, report_error
from pipelines.graph import StageRun
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.identity.fingerprint import digest, fingerprint, tree_digests
from pipelines.jobs.dashboard import Cluster, JobRequest, dashboard_address, need_of, require_fits
from pipelines.jobs.following import FollowedJob
from pipelines.jobs.snapshot import freeze
from pipelines.jobs.task import METRICS, JobTask, output_folder, read_manifest, run_folder
from pipelines.params import Compute
from pipelines.scratch.folder import Scratch
from pipelines.scratch.storage import Storage, files_below

METRICS_SECONDS = 3.0
STOP_SECONDS = 8.0
"""For the job to end. The runner waits 10 s for this process."""


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        work = StageTask(**json.loads(sys.stdin.readline()))
        _get_done(work, Compute(**work.compute))
    except BaseException as error:
        return report_error(error)
    return 0


def _get_done(work: StageTask, compute: Compute) -> None:
    run, scratch, root = graph.find(work.address), Scratch(Path(work.scratch)), Path(work.root)
    key = scratch.folder.name
    storage = Storage(str(compute.storage))
    job: FollowedJob | None = None
    with tempfile.TemporaryDirectory(prefix="job-") as folder:
        if read_manifest(storage, key) is None:
            job = _prepare(run, work, compute, storage, Path(folder))
        if sys.stdin.readline().strip() != "go":
            raise InfrastructureError(f"{run.address}: the runner is gone")
        end_with_parent()
        if job is not None:
            _upload(run, work, compute, storage, key, root)
            _require_unchanged(run, work, compute, root, Path(folder) / "code")
            looked = time.monotonic()

            def look() -> None:
                nonlocal looked
                if time.monotonic() - looked > METRICS_SECONDS:
                    _copy_metrics(storage, key, scratch)
                    looked = time.monotonic()
                if scratch.stop_file.exists():  # the runner was told to end
                    raise KeyboardInterrupt

            try:
                job.follow(look)
            except KeyboardInterrupt:
                job.stop(STOP_SECONDS)
                raise
        else:
            print(f"{run.address}: found finished in {storage.path(output_folder(key))}", flush=True)
    _bring_back(storage, key, scratch)


def _prepare(run: StageRun, work: StageTask, compute: Compute, storage: Storage, folder: Path) -> FollowedJob:
    """Everything that can go wrong before work is done: the cluster, what it has, the package."""
    cluster = Cluster(dashboard_address(compute))
    cluster.require_same_ray()
    nodes = cluster.nodes()
    need = need_of(run.stage.trains, compute, nodes)
    if not cluster.grows():
        require_fits(need, nodes, cluster.address)
    freeze(ROOT, folder / "code")
    key = Path(work.scratch).name
    alone = not (run.stage.trains and compute.workers)
    request = JobRequest(
        f"{key}-{digest(storage.url)[:6]}",  # a job that leaves its result elsewhere is another
        shlex.join(["python", "-m", "pipelines.jobs.entry", storage.url, key]),
        folder / "code",
        {"RAY_JOB_STOP_WAIT_TIME_S": "30"},
        cpus=need.cpus if alone else 0,
        gpus=need.gpus if alone else 0,
    )
    return FollowedJob(
        cluster,
        request,
        patience=compute.patience,
        retries=compute.max_failures,
        finished=lambda: read_manifest(storage, key) is not None,
    )


def _require_unchanged(run: StageRun, work: StageTask, compute: Compute, root: Path, copy: Path) -> None:
    """What travels must be what the runner fingerprinted: code or inputs edited in between would give a result of neither."""
    inputs = {name: root / path for name, path in run.inputs.items()}
    now = fingerprint(run, work.parameters, inputs, compute.threads)
    sources = stage_sources(run.stage)
    same = all((copy / name).is_file() and file_digest(copy / name) == file_digest(ROOT / name) for name in sources)
    if not same or not work.scratch.endswith(now[:16]):
        raise InfrastructureError(
            f"{run.address}: its code or inputs were changed while the job was prepared: run again"
        )


def _upload(run: StageRun, work: StageTask, compute: Compute, storage: Storage, key: str, root: Path) -> None:
    """Inputs, each once per content, and what to do with them."""
    places = {}
    for path in run.inputs.values():
        name = f"inputs/{digest(tree_digests(root / path))[:32]}"
        storage.publish(files_below(root / path), name)
        places[path] = name
    told = {**compute.model_dump(mode="json"), "backend": "local"}
    JobTask(key, run.address, work.parameters, told, places).write(storage)


def _copy_metrics(storage: Storage, key: str, scratch: Scratch) -> None:
    """Let the runner, which delivers from the scratch folder, see what the job has reported."""
    text = storage.read(f"{run_folder(key)}/{METRICS}")
    if text is not None and (
        not scratch.metrics_file.exists() or scratch.metrics_file.read_text(encoding="utf-8") != text
    ):
        write_atomically(scratch.metrics_file, text)


def _bring_back(storage: Storage, key: str, scratch: Scratch) -> None:
    """Outputs, figures and metrics, verified, into the scratch folder. They stay in the storage, for others and for next time."""
    done = read_manifest(storage, key)
    if done is None:
        raise InfrastructureError(
            f"the job succeeded, but {storage.path(output_folder(key))}/DONE.json is not there: run again"
        )
    with tempfile.TemporaryDirectory(dir=scratch.folder, prefix=".fetched-") as folder:
        storage.fetch(output_folder(key), Path(folder))
        for name, target in (("writing", scratch.writing), ("figures", scratch.figures)):
            if (Path(folder) / name).is_dir():
                target.rmdir()  # the runner made it, empty
                os.rename(Path(folder) / name, target)
        if (Path(folder) / METRICS).is_file():
            os.replace(Path(folder) / METRICS, scratch.metrics_file)
    if done.ran:
        write_atomically(scratch.remote_file, done.ran.to_json())
    write_atomically(scratch.result_file, json.dumps(done.metrics, sort_keys=True))


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):  # the runner says it too; once is enough
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
