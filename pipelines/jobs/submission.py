"""`python -m pipelines submit`: the whole pipeline as a Ray job.

A frozen copy of the checkout is uploaded to the cluster, where `pipelines.jobs.repro_job` runs `python -m pipelines repro` in the
shared folder, with one DVC cache and one scratch root for all such jobs. Afterwards `dvc.lock` and the metrics are fetched, and
`dvc pull` fetches the outputs. The same checkout submitted again is the same job.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from components.errors import ParameterError
from pipelines import graph
from pipelines.engine.ray_cluster import require_bundles
from pipelines.errors import REPRO_COMMAND, InfrastructureError
from pipelines.identity.fingerprint import digest
from pipelines.jobs.dashboard import Cluster, JobRequest, ResourceRequest, dashboard_address, resources_for
from pipelines.jobs.following import FollowedJob
from pipelines.jobs.snapshot import REPRO, freeze
from pipelines.jobs.task import output_folder, publish_inputs, read_manifest
from pipelines.params import Parameters, as_environment, load
from pipelines.records.code_state import code_state
from pipelines.schema.running import Compute
from pipelines.scratch.folder import put_in_place
from pipelines.scratch.storage import Storage
from pipelines.workspace import Workspace

CACHE = "dvc-cache"
STOP_SECONDS = 40.0
DAY = 86_400.0


def submit(workspace: Workspace, stage: str | None = None) -> None:
    """Run everything, or `stage` and what it needs, on the cluster, and bring the results here.

    Raises ParameterError, InfrastructureError, StageFailedError (130: the job was stopped) or KeyboardInterrupt, as a stage does.
    """
    params = load(workspace.path("params.yaml"), for_dvc=True)  # which the job runs
    compute = params.compute
    storage = _shared_folder(compute)
    target = graph.find_default(stage) if stage else None
    targets = [target.address] if target else []
    cluster = Cluster(dashboard_address(compute))
    cluster.require_same_ray()
    nodes = cluster.nodes()
    need = resources_for(True, compute, nodes)
    if not cluster.grows():  # with workers, the job's own process needs one more bundle, because it computes too
        bundles, resources = need.minimum + (1 if compute.workers else 0), [node.resources for node in nodes]
        require_bundles(bundles, need.cpus, need.gpus, resources, f"the cluster at {cluster.address}")
        runs = graph.with_upstream([target]) if target else graph.all_runs()
        if any(run.stage.starts_workers for run in runs):
            beside = f"the cluster at {cluster.address}, for the job's own process and the workers of train_parity beside it,"
            require_bundles(need.cpus + params.train_parity.workers, 1, 0, resources, beside)
    weights = [path for path in params.weights(Parameters.model_fields) if workspace.path(path).exists()]
    request = _request(workspace, storage, compute, need, targets, weights)

    def finished() -> bool:
        return read_manifest(storage, request.key) is not None

    job = FollowedJob(cluster, request, patience=compute.patience, retries=compute.max_failures, finished=finished)
    print(f"the same by hand:\n  {by_hand(request, cluster.address)}", flush=True)
    if not finished():
        try:
            job.follow()
        except KeyboardInterrupt:
            job.stop(STOP_SECONDS)
            raise
    _fetch_results(workspace, storage, request.key, targets)


def _shared_folder(compute: Compute) -> Storage:
    if compute.storage is None:
        raise ParameterError("compute.storage: submit needs an absolute folder that this machine and every node see")
    storage = Storage(compute.storage)
    if storage.folder is None:
        raise ParameterError(
            f"compute.storage = {compute.storage}: submit needs a shared folder, as a DVC cache cannot be in a bucket; with a "
            f"bucket set compute.backend to job and run `{REPRO_COMMAND}` here"
        )
    if not storage.folder.is_dir():
        raise InfrastructureError(f"compute.storage = {compute.storage}: no such folder here: mount it, or make it")
    return storage


def tracking_for_job() -> str:
    """Return MLFLOW_TRACKING_URI. Raises ParameterError for one that a job cannot use, or that has a password others could read."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        raise ParameterError(
            "MLFLOW_TRACKING_URI: a job needs a tracking server (http://...) that the cluster reaches; a SQLite file would stay "
            "there"
        )
    if urlsplit(uri).password:
        raise ParameterError(
            "MLFLOW_TRACKING_URI: holds a password, which everybody who sees the job would see; give the nodes "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in their environment"
        )
    return uri


def _request(
    workspace: Workspace,
    storage: Storage,
    compute: Compute,
    need: ResourceRequest,
    targets: list[str],
    weights: list[str],
) -> JobRequest:
    """Freeze the checkout below the scratch root, where it stays for a submission by hand; upload raw data and local weights."""
    environment = {"MLFLOW_TRACKING_URI": tracking_for_job(), "PIPELINES_HOME": storage.path("home")}
    names = {"workers", "threads", "device", "strategy", "offload", "max_failures", "min_workers"}
    on_cluster = {**compute.model_dump(include=names), "backend": "local"}
    environment |= {"RAY_JOB_STOP_WAIT_TIME_S": "30", **as_environment(on_cluster)}
    if experiment := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        environment["MLFLOW_EXPERIMENT_NAME"] = experiment
    snapshots = workspace.home / "snapshots"
    snapshots.mkdir(parents=True, exist_ok=True)
    for left in snapshots.glob(".writing-*"):  # by a submission that was killed; a younger one may be at work
        if time.time() - left.stat().st_mtime > DAY:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=snapshots, prefix=".writing-") as folder:
        copy = Path(folder) / "code"
        code = freeze(workspace.root, copy, REPRO, code_state(workspace.root))
        inputs = publish_inputs(storage, workspace.root, ["data/raw", *weights])
        key = f"repro-{digest([code, inputs, targets, environment])[:16]}"
        frozen = snapshots / key
        if not frozen.exists():
            os.rename(copy, frozen)
    entrypoint = ["python", "-m", "pipelines.jobs.repro_job", storage.url, key, json.dumps(inputs), *targets]
    return JobRequest(key, shlex.join(entrypoint), frozen, environment, need.cpus, need.gpus)


def by_hand(request: JobRequest, address: str) -> str:
    """Return the equivalent `ray job submit` command."""
    words = ["ray", "job", "submit", "--address", address, "--submission-id", request.submission(1)]
    words += ["--working-dir", str(request.working_dir)]
    words += ["--entrypoint-num-cpus", str(request.cpus)] if request.cpus else []
    words += ["--entrypoint-num-gpus", str(request.gpus)] if request.gpus else []
    words += ["--runtime-env-json", json.dumps({"env_vars": dict(request.environment)})]
    return f"{shlex.join(words)} -- {request.entrypoint}"


def _fetch_results(workspace: Workspace, storage: Storage, key: str, targets: list[str]) -> None:
    """Fetch dvc.lock and metrics into the checkout, then pull the outputs from the shared cache as from a remote."""
    with tempfile.TemporaryDirectory(dir=workspace.home, prefix=".fetched-") as folder:
        fetched = Path(folder) / "fetched"
        storage.fetch(output_folder(key), fetched)
        for name in sorted(path.name for path in fetched.iterdir()):
            put_in_place(fetched / name, workspace.path(name))
        config = Path(folder) / "config"
        config.mkdir()
        (config / "config").write_text(f"['remote \"job\"']\n    url = {storage.path(CACHE)}\n")
        chosen = ["--with-deps", *targets] if targets else ["dvc.yaml"]
        command = [sys.executable, "-m", "dvc", "pull", "--quiet", "--remote", "job", *chosen]
        environment = {**os.environ, "DVC_GLOBAL_CONFIG_DIR": str(config), "DVC_NO_ANALYTICS": "1"}
        pulled = subprocess.run(command, cwd=workspace.root, env=environment, check=False)
    if pulled.returncode:
        raise InfrastructureError(
            f"dvc.lock is the job's, but `dvc pull` from {storage.path(CACHE)} failed (see above): move the files in its way, and "
            "submit again"
        )
    print("dvc.lock and all outputs are here; `python -m pipelines report` renders the report", flush=True)
