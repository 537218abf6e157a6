"""Creates and finds runs in MLflow. Only the runner's process writes, so a SQLite store has one writer at a time.

A pipeline execution is a parent run, found again by a digest of params.yaml and all code; each stage is a child run, remembered in
its scratch folder, so that a killed stage continues its run. `pipelines.tracking.delivery` writes to a run that is open.
"""

import json
import os
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from components.errors import ParameterError
from components.files import file_digest
from pipelines.errors import one_line
from pipelines.graph import all_stages
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.identity.fingerprint import digest
from pipelines.locks.file_lock import file_lock
from pipelines.locks.lease import machine_id
from pipelines.redaction import without_secrets
from pipelines.scratch.manifest import InputRecord
from pipelines.tracking.addresses import sqlite_file, tracking_uri
from pipelines.tracking.delivery import ARTIFACT_FOLDER, TrackedRun
from pipelines.tracking.failures import explain
from pipelines.tracking.run_state import STATE_FILE, RunState
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "crossmodal-pipelines"
"""Where MLFLOW_EXPERIMENT_NAME, which MLflow itself reads, names no other."""
LOCK_SECONDS = 300.0
"""How long to wait for another process that creates the database, or the pipeline's run."""
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
PATCH_ARTIFACT, MANIFEST_ARTIFACT = f"{ARTIFACT_FOLDER}/code.patch", f"{ARTIFACT_FOLDER}/DONE.json"
"""Artifacts of a run: the patch to its commit, and the manifest of its result."""


@dataclass(frozen=True)
class RunFacts:
    """What MLflow shows of a stage run from its start."""

    name: str
    tags: Mapping[str, str]
    parameters: Mapping[str, Any]
    inputs: Mapping[str, InputRecord]
    """By path."""
    patch: str = ""
    """The difference between the commit and the files that ran."""


def public_uri(workspace: Workspace) -> str:
    """Return the tracking address without its password, to be stored and shown."""
    return without_secrets(tracking_uri(workspace))


def connect(workspace: Workspace) -> "Tracker":
    """Return a tracker whose server has answered. Raises within seconds what `explain` makes of a failure."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would print a password in the address
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import logging

    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = tracking_uri(workspace)
    # The first access creates the database; two at once would corrupt it for good.
    with explained_failures(workspace), _lock(workspace):
        client = MlflowClient(uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        if experiment := client.get_experiment_by_name(name):
            identifier = experiment.experiment_id
            if experiment.lifecycle_stage != "active":
                restore = f"MLFLOW_TRACKING_URI={public_uri(workspace)} mlflow experiments restore -x {identifier}"
                raise ParameterError(
                    f"the experiment {name} was deleted: `{restore}`, or set MLFLOW_EXPERIMENT_NAME to another; nothing was run"
                )
        else:
            database = sqlite_file(uri)
            beside = (database.parent.absolute() / "mlartifacts").as_uri() if database else None
            identifier = client.create_experiment(name, artifact_location=beside)
    return Tracker(client, identifier, workspace)


@contextmanager
def explained_failures(workspace: Workspace) -> Iterator[None]:
    """Raise what `explain` makes of a failure of the workspace's store in the block, where no run can begin without it."""
    try:
        yield
    except Exception as error:  # drivers and servers raise many types
        found = explain(tracking_uri(workspace), error)
        raise found from (None if found is error else error)


def _lock(workspace: Workspace) -> AbstractContextManager[None]:
    """Return the lock under which the database and the pipeline's run are created."""
    file = workspace.home / "tracking.lock"
    return file_lock(file, f"another process has held {file} for {LOCK_SECONDS:.0f} s: run again later", LOCK_SECONDS)


class Tracker:
    """Creates and finds the runs of one pipeline execution."""

    def __init__(self, client: "MlflowClient", experiment: str, workspace: Workspace) -> None:
        self.client = client
        self.experiment = experiment
        self.workspace = workspace

    def pipeline_run(self) -> str:
        """Return the parent run of this params.yaml with this code, marked as running."""
        identity = pipeline_identity(self.workspace)
        with _lock(self.workspace):
            if found := self.find_pipeline_run(identity):
                run_id = found.info.run_id
            else:
                tags = {"pipelines.pipeline": identity, "mlflow.runName": f"pipeline {identity[:8]}"}
                run_id = self.client.create_run(self.experiment, tags=tags).info.run_id
        for key, value in owner().items():  # when this process is killed, `end_orphans` finds this run too
            self.client.set_tag(run_id, key, value)
        self.client.update_run(run_id, status="RUNNING")
        return str(run_id)

    def find_pipeline_run(self, identity: str) -> "Run | None":
        """Return the first pipeline run with this `pipeline_identity`."""
        return self._find(f"tags.`pipelines.pipeline` = '{identity}'", "ASC")

    def find_finished_run(self, identity: str) -> "Run | None":
        """Return the newest finished stage run with this fingerprint."""
        return self._find(f"tags.`pipelines.fingerprint` = '{identity}' and attributes.status = '{FINISHED}'", "DESC")

    def _find(self, filter_string: str, order: str) -> "Run | None":
        by_start = [f"attributes.start_time {order}"]
        found = self.client.search_runs([self.experiment], filter_string, order_by=by_start, max_results=1)
        return found[0] if found else None

    def open(self, folder: Path, facts: RunFacts, parent: str | None = None) -> TrackedRun:
        """Open the stage's run: the one that `folder` remembers, or a new one below the pipeline's run.

        `parent` replaces the pipeline's run; its creator sets its status. Raises as `connect` does when the server stops answering.
        """
        with explained_failures(self.workspace):
            self.close_finished()
            self.end_orphans()
            return self._open(folder, facts, parent)

    def _open(self, folder: Path, facts: RunFacts, given_parent: str | None) -> TrackedRun:
        parent = given_parent or self.pipeline_run()
        run_id = self._existing_run(folder)
        reopened = run_id is not None
        if run_id is None:
            state = RunState(uri=public_uri(self.workspace), token=uuid.uuid4().hex)
            state.save(folder)  # a kill after the next request loses no run
            tags = {**facts.tags, **owner(), "pipelines.token": state.token}
            tags |= {"mlflow.parentRunId": parent, "mlflow.runName": facts.name}
            run_id = str(self.client.create_run(self.experiment, tags=tags).info.run_id)
        else:
            self.client.update_run(run_id, status="RUNNING")
            for key, value in {**facts.tags, **owner()}.items():
                self.client.set_tag(run_id, key, value)
        state = RunState.load(folder)
        state.run, state.parent = run_id, None if given_parent else parent
        state.save(folder)
        if not state.described:
            self._describe(run_id, facts)
        if facts.patch:
            self.client.log_text(run_id, facts.patch, PATCH_ARTIFACT)
        state.described, state.ended, state.closed = True, None, False
        state.save(folder)
        return TrackedRun(self.client, run_id, folder, unconfirmed=reopened)

    def _existing_run(self, folder: Path) -> str | None:
        """Return the run that the folder remembers, if the server still has it."""
        state = RunState.find(folder)
        if state is None or state.uri != public_uri(self.workspace):
            return None
        if state.run is None:  # killed while it was created
            found = self.client.search_runs([self.experiment], f"tags.`pipelines.token` = '{state.token}'")
            return str(found[0].info.run_id) if found else None
        return state.run if self._exists(state.run) else None

    def close_finished(self, only: Path | None = None) -> None:
        """Close runs that ended while the server was away: all in the scratch root, or that of one folder."""
        uri = public_uri(self.workspace)
        for folder in [only] if only else [path.parent for path in sorted(self.workspace.home.glob(f"*/{STATE_FILE}"))]:
            state = RunState.find(folder)
            if state is None or state.run is None or not state.must_be_closed(uri):
                continue
            try:
                if self._exists(state.run):
                    TrackedRun(self.client, state.run, folder, unconfirmed=True).close()
            except Exception as error:  # it stays as it is; the stage that is about to begin is more urgent
                reason = one_line(error)
                print(f"warning: run {state.run} still cannot be closed ({reason})", file=sys.stderr, flush=True)

    def _describe(self, run_id: str, facts: RunFacts) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        flat = [Param(key, str(value)) for key, value in flatten(facts.parameters).items()]
        for start in range(0, len(flat), 100):
            self.client.log_batch(run_id, params=flat[start : start + 100])
        inputs = []
        for path, used in facts.inputs.items():
            content = json.dumps({"path": path, **_present(used, "sha256", "md5")})
            maker = _present(used, "stage", "fingerprint", "run")
            tags = {"mlflow.data.context": used.name, **{f"pipelines.{key}": value for key, value in maker.items()}}
            dataset = Dataset(path, used.sha256[:32], "dvc", content)
            inputs.append(DatasetInput(dataset, [InputTag(key, value) for key, value in tags.items()]))
        if inputs:
            self.client.log_inputs(run_id, datasets=inputs)

    def _exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def end_orphans(self) -> None:
        """Mark runs that a killed process left as RUNNING as KILLED, if it was one that this process could see (`visible_from`)."""
        chosen = f"attributes.status = 'RUNNING' and tags.`pipelines.visible_from` = '{visible_from()}'"
        running = self.client.search_runs([self.experiment], chosen, max_results=100)
        for run in running:
            if not _alive(run.data.tags):
                self.client.set_terminated(run.info.run_id, KILLED)


def artifact_text(run_id: str, path: str, client: "MlflowClient") -> str | None:
    """Return an artifact of a run as text, or None without one. (MLflow's client downloads to a folder only.)"""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="artifact-") as folder:
        try:
            return Path(client.download_artifacts(run_id, path, folder)).read_bytes().decode()
        except (MlflowException, OSError):
            return None


def pipeline_identity(workspace: Workspace) -> str:
    """Return the digest of params.yaml and of every stage's source, which identifies a pipeline execution."""
    sources = sorted({source for stage in all_stages() for source in stage_sources(stage)})
    return digest([file_digest(workspace.path("params.yaml")), {s: file_digest(ROOT / s) for s in sources}])


def _present(record: InputRecord, *keys: str) -> dict[str, str]:
    return {key: value for key, value in record.model_dump(include=set(keys)).items() if value}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def owner() -> dict[str, str]:
    """Return tags that identify this process, even when its number is used again."""
    return {
        "pipelines.host": socket.gethostname(),
        "pipelines.visible_from": visible_from(),
        "pipelines.pid": str(os.getpid()),
        "pipelines.started": f"{psutil.Process().create_time():.1f}",
    }


def visible_from() -> str:
    """Return an id of the running kernel and of the process numbers in use: containers may share names and numbers, or a kernel."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        numbers = "pid"
    return f"{machine_id()} {numbers}"


def _alive(tags: Mapping[str, str]) -> bool:
    """Return whether the process of these tags still runs, and is not another one with its number."""
    pid = int(tags.get("pipelines.pid", "0"))
    try:
        started = psutil.Process(pid).create_time() if pid > 0 else None
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False
    return started is not None and abs(started - float(tags.get("pipelines.started", started))) < 2
