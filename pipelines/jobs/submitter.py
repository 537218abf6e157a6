"""The process that runs a stage as a Ray job; the runner starts it in place of `pipelines.engine.worker`.

It reads the same line, waits for the same "go", and writes the same files in the scratch folder: metrics.jsonl while the job runs,
outputs, figures and result.json at the end. On Ctrl-C or SIGTERM it stops the job. When the runner dies, this process ends and the
job keeps running: the next run of the stage follows that job.
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
from pipelines.errors import INTERRUPTED, InfrastructureError, report_error
from pipelines.graph import StageRun
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.identity.fingerprint import digest, present_fingerprint, stage_inputs
from pipelines.jobs.dashboard import Cluster, JobRequest, dashboard_address, require_fits, resources_for
from pipelines.jobs.following import FollowedJob
from pipelines.jobs.metrics import MetricsCopy
from pipelines.jobs.snapshot import freeze
from pipelines.jobs.task import METRICS, JobTask, output_folder, publish_inputs, read_manifest
from pipelines.params import kind_of
from pipelines.schema.running import Compute
from pipelines.scratch.folder import Scratch
from pipelines.scratch.storage import Storage

METRICS_SECONDS = 3.0
STOP_SECONDS = 8.0
"""Time for the job to end. The runner waits 10 s for this process."""


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        task = StageTask(**json.loads(sys.stdin.readline()))
        _run_as_job(task, Compute(**task.compute))
    except BaseException as error:
        # Of an interrupt, the runner says how far the stage has come.
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else report_error(error)
    return 0


def _run_as_job(task: StageTask, compute: Compute) -> None:
    run, scratch, root = graph.find(task.address), Scratch(Path(task.scratch)), Path(task.root)
    key = scratch.folder.name
    storage = Storage(str(compute.storage))
    job: FollowedJob | None = None
    with tempfile.TemporaryDirectory(prefix="job-") as folder:
        if read_manifest(storage, key) is None:
            job = _prepare(run, task, compute, storage, Path(folder))
        if sys.stdin.readline().strip() != "go":
            raise InfrastructureError(f"{run.address}: the runner is gone")
        end_with_parent()
        if job is not None:
            _upload(run, task, compute, storage, key, root)
            _require_unchanged(run, task, compute, root, Path(folder) / "code")
            metrics, looked = MetricsCopy(storage, key, scratch.metrics_file), time.monotonic()

            def look() -> None:
                nonlocal looked
                if time.monotonic() - looked > METRICS_SECONDS:
                    metrics.update()
                    looked = time.monotonic()
                if scratch.stop_file.exists():  # the runner received a signal
                    raise KeyboardInterrupt

            try:
                job.follow(look)
            except KeyboardInterrupt:
                job.stop(STOP_SECONDS)
                raise
        else:
            print(f"{run.address}: found finished in {storage.path(output_folder(key))}", flush=True)
    _fetch_results(storage, key, scratch)


def _prepare(run: StageRun, task: StageTask, compute: Compute, storage: Storage, folder: Path) -> FollowedJob:
    """Check the cluster and its resources and freeze the code: what can fail before the stage begins."""
    cluster = Cluster(dashboard_address(compute))
    cluster.require_same_ray()
    nodes = cluster.nodes()
    need = resources_for(run.stage.trains, compute, nodes)
    if not cluster.grows():
        require_fits(need, nodes, cluster.address)
    freeze(ROOT, folder / "code")
    key = Path(task.scratch).name
    alone = not (run.stage.trains and compute.workers)
    request = JobRequest(
        f"{key}-{digest(storage.url)[:6]}",  # the same stage with another storage is another job
        shlex.join(["python", "-m", "pipelines.jobs.stage_job", storage.url, key]),
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


def _require_unchanged(run: StageRun, task: StageTask, compute: Compute, root: Path, copy: Path) -> None:
    """Raise InfrastructureError when code or inputs were edited after the runner fingerprinted them."""
    params = kind_of(run.stage).partial({**task.parameters, "compute": compute.model_dump(mode="json")})
    now = present_fingerprint(run, params, root)
    sources = stage_sources(run.stage)
    same = all((copy / name).is_file() and file_digest(copy / name) == file_digest(ROOT / name) for name in sources)
    if not same or not task.scratch.endswith(now[:16]):
        raise InfrastructureError(f"{run.address}: its code or inputs changed while the job was prepared: run again")


def _upload(run: StageRun, task: StageTask, compute: Compute, storage: Storage, key: str, root: Path) -> None:
    """Upload the inputs, each once per content, and the task."""
    paths = stage_inputs(run, kind_of(run.stage).partial(task.parameters), root).values()
    locations = publish_inputs(storage, root, paths)
    on_cluster = {**compute.model_dump(mode="json"), "backend": "local"}
    JobTask(key, run.address, task.parameters, on_cluster, locations).write(storage)


def _fetch_results(storage: Storage, key: str, scratch: Scratch) -> None:
    """Fetch outputs, figures and metrics, verified, into the scratch folder. They stay in the storage too."""
    done = read_manifest(storage, key)
    if done is None:
        raise InfrastructureError(f"the job succeeded without {storage.path(output_folder(key))}/DONE.json: run again")
    with tempfile.TemporaryDirectory(dir=scratch.folder, prefix=".fetched-") as folder:
        storage.fetch(output_folder(key), Path(folder))
        for name, target in (("writing", scratch.writing), ("figures", scratch.figures)):
            if (Path(folder) / name).is_dir():
                target.rmdir()  # an empty folder, made by the runner
                os.rename(Path(folder) / name, target)
        if (Path(folder) / METRICS).is_file():
            os.replace(Path(folder) / METRICS, scratch.metrics_file)
    if done.ran:
        write_atomically(scratch.remote_file, done.ran.to_json())
    write_atomically(scratch.result_file, json.dumps(done.metrics, sort_keys=True))


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):  # the runner sends one too; one is enough
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
