"""Runs in MLflow. Only the runner's process writes, so a SQLite store has one writer at a time.

A pipeline execution is a parent run, found again by a digest of params.yaml and all code; each stage is a child run, found again by
its fingerprint in the scratch folder, so that a killed stage goes on in the run it began. Metrics come from the stage's log on disk
and are delivered in order; when the server is away in mid-run they wait there.
"""

import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.files import file_digest, write_atomically
from pipelines.closure import ROOT, stage_sources
from pipelines.errors import InfrastructureError
from pipelines.fingerprint import digest
from pipelines.graph import all_stages
from pipelines.reported import MetricLog
from pipelines.workspace import Workspace, main_worktree

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "crossmodal-pipelines"
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
BATCH = 500
"""Metrics in one request; the server takes at most 1000."""


@dataclass(frozen=True)
class RunFacts:
    """What is known of a stage run before it starts."""

    name: str
    tags: Mapping[str, str]
    parameters: Mapping[str, Any]
    inputs: Mapping[str, tuple[str, str]]
    """Input name to (path, digest)."""


def tracking_uri(workspace: Workspace) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file beside the scratch root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{main_worktree(workspace.root) / 'mlflow.db'}"


def connect(workspace: Workspace) -> "Tracker":
    """A tracker whose server has answered. Raises InfrastructureError within seconds when it does not."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import logging

    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = tracking_uri(workspace)
    try:
        # The first touch creates the database; two at once would corrupt it for good.
        with _file_lock(workspace.home / "tracking.lock"):
            client = MlflowClient(uri)
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                artifacts = None
                if uri.startswith("sqlite:"):
                    artifacts = (main_worktree(workspace.root) / "mlartifacts").as_uri()
                identifier = client.create_experiment(EXPERIMENT, artifact_location=artifacts)
            else:
                identifier = experiment.experiment_id
    except Exception as error:  # drivers and servers fail in many types; all of them mean that no run can begin
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InfrastructureError(
            f"the MLflow server at {uri} does not answer ({reason}): start it, or set MLFLOW_TRACKING_URI; nothing was run"
        ) from error
    return Tracker(client, identifier, workspace)


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Tracker:
    """Runs of one pipeline execution."""

    def __init__(self, client: "MlflowClient", experiment: str, workspace: Workspace) -> None:
        self.client = client
        self.experiment = experiment
        self.workspace = workspace

    def pipeline_run(self) -> str:
        """The parent run of this params.yaml with this code, marked as running."""
        identity = pipeline_identity(self.workspace)
        with _file_lock(self.workspace.home / "tracking.lock"):
            found = self.client.search_runs(
                [self.experiment],
                f"tags.`pipelines.pipeline` = '{identity}'",
                order_by=["attributes.start_time ASC"],
                max_results=1,
            )
            if found:
                run_id = found[0].info.run_id
            else:
                tags = {"pipelines.pipeline": identity, "mlflow.runName": f"pipeline {identity[:8]}"}
                run_id = self.client.create_run(self.experiment, tags=tags).info.run_id
        self.client.update_run(run_id, status="RUNNING")
        return str(run_id)

    def open(self, folder: Path, facts: RunFacts) -> "TrackedRun":
        """The stage's run: the one that `folder` remembers, re-opened, or a new one under the pipeline's."""
        self._end_orphans()
        parent = self.pipeline_run()
        memory = folder / "mlflow.json"
        run_id = _remembered(memory, tracking_uri(self.workspace))
        owner = {"pipelines.host": socket.gethostname(), "pipelines.pid": str(os.getpid())}
        if run_id and self._exists(run_id):
            self.client.update_run(run_id, status="RUNNING")
            for key, value in {**facts.tags, **owner}.items():
                self.client.set_tag(run_id, key, value)
        else:
            tags = {**facts.tags, **owner, "mlflow.parentRunId": parent, "mlflow.runName": facts.name}
            run_id = self.client.create_run(self.experiment, tags=tags).info.run_id
            self._describe(run_id, facts)
            write_atomically(memory, json.dumps({"uri": tracking_uri(self.workspace), "run": run_id, "delivered": {}}))
        return TrackedRun(self.client, run_id, parent, folder)

    def _describe(self, run_id: str, facts: RunFacts) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        flat = [Param(key, str(value)) for key, value in flatten(facts.parameters).items()]
        for start in range(0, len(flat), 100):
            self.client.log_batch(run_id, params=flat[start : start + 100])
        inputs = [
            DatasetInput(
                Dataset(path, content[:32], "dvc", json.dumps({"path": path, "sha256": content})),
                [InputTag("mlflow.data.context", name)],
            )
            for name, (path, content) in facts.inputs.items()
        ]
        if inputs:
            self.client.log_inputs(run_id, datasets=inputs)

    def _exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException:
            return False

    def _end_orphans(self) -> None:
        """Runs that a killed process of this machine left as RUNNING are marked KILLED."""
        host = socket.gethostname()
        running = self.client.search_runs(
            [self.experiment], f"attributes.status = 'RUNNING' and tags.`pipelines.host` = '{host}'", max_results=100
        )
        for run in running:
            if not _alive(int(run.data.tags.get("pipelines.pid", "0"))):
                self.client.set_terminated(run.info.run_id, KILLED)


class TrackedRun:
    """One stage's run, open for writing."""

    def __init__(self, client: "MlflowClient", run_id: str, parent: str, folder: Path) -> None:
        self.client = client
        self.run_id = run_id
        self.parent = parent
        self.folder = folder
        self._away_until = 0.0
        self._warned = False

    def deliver(self, *, patience: float = 0.0) -> bool:
        """Send what the stage reported since the last delivery. Gives up after `patience` seconds; True if all arrived."""
        deadline = time.monotonic() + patience
        while True:
            if time.monotonic() >= self._away_until and self._try_to_deliver():
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.5)

    def _try_to_deliver(self) -> bool:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        memory = self.folder / "mlflow.json"
        known = json.loads(memory.read_text())
        delivered: dict[str, int] = known["delivered"]
        lines = [
            x for x in MetricLog(self.folder / "metrics.jsonl").read() if x["step"] > delivered.get(x["phase"], -1)
        ]
        metrics = [
            Metric(metric_name(k), v, int(x["time"] * 1000), x["step"]) for x in lines for k, v in x["metrics"].items()
        ]
        try:
            for start in range(0, len(metrics), BATCH):
                self.client.log_batch(self.run_id, metrics=metrics[start : start + BATCH])
        except (MlflowException, OSError) as error:
            self._away_until = time.monotonic() + 5
            if not self._warned:
                self._warned = True
                print(
                    f"warning: metrics wait on disk, MLflow is away ({str(error)[:120]})", file=sys.stderr, flush=True
                )
            return False
        if lines:
            for line in lines:
                delivered[line["phase"]] = max(line["step"], delivered.get(line["phase"], -1))
            write_atomically(memory, json.dumps(known))
        return True

    def finish(self, status: str, metrics: Mapping[str, float], figures: Path | None = None) -> None:
        """Final metrics, pictures and status, on this run and on its pipeline's."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        final = [Metric(metric_name(key), value, now, 0) for key, value in metrics.items()]
        for start in range(0, len(final), BATCH):
            self.client.log_batch(self.run_id, metrics=final[start : start + BATCH])
        if figures and figures.is_dir() and any(figures.iterdir()):
            self.client.log_artifacts(self.run_id, str(figures), "figures")
        self.client.set_terminated(self.run_id, status)
        self.client.set_terminated(self.parent, status)


def pipeline_identity(workspace: Workspace) -> str:
    """Digest of params.yaml and of every stage's source: what a pipeline execution is known by."""
    sources = sorted({source for stage in all_stages() for source in stage_sources(stage)})
    return digest([file_digest(workspace.path("params.yaml")), {s: file_digest(ROOT / s) for s in sources}])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def metric_name(key: str) -> str:
    """A metric's name as MLflow allows it: "R@1" becomes "R_1"."""
    return re.sub(r"[^\w\-. :/]", "_", key)


def _remembered(memory: Path, uri: str) -> str | None:
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        return None
    return known["run"] if known.get("uri") == uri else None


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
