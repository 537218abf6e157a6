"""Creates and finds runs in MLflow.

Each stage has a run, remembered in its scratch folder, so that a killed stage continues its run; its parent is that of the pipeline
execution (`pipelines.tracking.pipeline_run`) or of a trial. `pipelines.tracking.delivery` writes to a run that is open.
"""

import json
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError, ParameterError
from pipelines.errors import one_line
from pipelines.locks.file_lock import file_lock
from pipelines.locks.machine import installation, visible_from
from pipelines.redaction import without_secrets
from pipelines.scratch.manifest import InputRecord
from pipelines.tracking.addresses import has_store, sqlite_file, tracking_uri
from pipelines.tracking.database import create_database
from pipelines.tracking.delivery import ARTIFACT_FOLDER, TrackedRun
from pipelines.tracking.failures import explain, is_missing
from pipelines.tracking.owners import is_alive, owner
from pipelines.tracking.run_state import STATE_FILE, RunState
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

EXPERIMENT = "crossmodal-pipelines"
"""Where MLFLOW_EXPERIMENT_NAME, which MLflow itself reads, names no other."""
TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""The experiment's tag by which MLflow's interface shows it for the training of models, and not for language models."""
LOCK_SECONDS = 300.0
"""How long to wait for another process that creates the database, or the pipeline's run."""
PARAMS_OR_TAGS = 100
"""That a server takes in one request."""
LEVEL, PARENT = "level", "mlflow.parentRunId"
"""Tags: what a run is of (pipeline, stage, sweep, trial), and the run that MLflow shows it under."""
FORMER_LEVEL = "pipelines.role"
"""Where older code kept the level of the runs of sweeps."""
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


def connect(workspace: Workspace, *, create: bool = True) -> "Tracker":
    """Return a tracker whose server has answered. Raises within seconds what `explain` makes of a failure.

    Without `create`, for what only looks: raises DataError where there is no store yet.
    """
    if not create and not has_store(workspace):
        raise DataError(f"no MLflow store at {public_uri(workspace)}: nothing has been run here")
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
    # Two at once that create the database would corrupt it for good.
    with explained_failures(workspace), creation_lock(workspace):
        create_database(uri)
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
            identifier = client.create_experiment(name, artifact_location=beside, tags=TRAINING)
    return Tracker(client, identifier, workspace)


@contextmanager
def explained_failures(workspace: Workspace) -> Iterator[None]:
    """Raise what `explain` makes of a failure of the workspace's store in the block, where no run can begin without it."""
    try:
        yield
    except Exception as error:  # drivers and servers raise many types
        found = explain(tracking_uri(workspace), error)
        raise found from (None if found is error else error)


def creation_lock(workspace: Workspace) -> AbstractContextManager[None]:
    """Return the lock under which the database and the pipeline's run are created."""
    file = workspace.home / "tracking.lock"
    return file_lock(file, f"another process has held {file} for {LOCK_SECONDS:.0f} s: run again later", LOCK_SECONDS)


class Tracker:
    """Creates and finds the runs of one workspace's experiment."""

    def __init__(self, client: "MlflowClient", experiment: str, workspace: Workspace) -> None:
        self.client = client
        self.experiment = experiment
        self.workspace = workspace

    def find_finished_run(self, identity: str) -> "Run | None":
        """Return the newest finished stage run with this fingerprint."""
        return self.find(f"tags.`pipelines.fingerprint` = '{identity}' and attributes.status = '{FINISHED}'", "DESC")

    def find(self, filter_string: str, order: str) -> "Run | None":
        """Return the run that this filter selects and that started last ("DESC") or first ("ASC")."""
        by_start = [f"attributes.start_time {order}"]
        found = self.client.search_runs([self.experiment], filter_string, order_by=by_start, max_results=1)
        return found[0] if found else None

    def rename_former_levels(self) -> None:
        """Give the sweeps of older code the tag by which they are found now."""
        for run in self.client.search_runs([self.experiment], f"tags.`{FORMER_LEVEL}` LIKE '%'", max_results=5000):
            self.client.set_tag(run.info.run_id, LEVEL, run.data.tags[FORMER_LEVEL])
            self.client.delete_tag(run.info.run_id, FORMER_LEVEL)

    def open(
        self, folder: Path, facts: RunFacts, parent: str | None = None, *, ends_parent: bool = False
    ) -> TrackedRun:
        """Open the stage's run: the one that `folder` remembers, or a new one below `parent`.

        `ends_parent`: the parent's status becomes that of the stage when it ends; without, it is its creator's affair. Raises as
        `connect` does when the server stops answering.
        """
        with explained_failures(self.workspace):
            self.close_finished()
            self.end_orphans()
            return self._open(folder, facts, parent, parent if ends_parent else None)

    def _open(self, folder: Path, facts: RunFacts, parent: str | None, ended_with_it: str | None) -> TrackedRun:
        tags = {**facts.tags, **owner(), LEVEL: "stage"}
        run_id = self._existing_run(folder)
        reopened = run_id is not None
        if run_id is None:
            state = RunState(uri=public_uri(self.workspace), token=uuid.uuid4().hex)
            state.save(folder)  # a kill after the next request loses no run
            tags |= {
                "pipelines.token": state.token,
                "mlflow.runName": facts.name,
                **({PARENT: parent} if parent else {}),
            }
            run_id = str(self.client.create_run(self.experiment, tags=tags).info.run_id)
        else:
            self.set_tags(run_id, tags)  # first, or another process finds it RUNNING and its owner dead
            self.client.update_run(run_id, status="RUNNING")
        state = RunState.load(folder)
        state.run, state.parent = run_id, ended_with_it
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
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self.log_params(run_id, facts.parameters)
        inputs = []
        for path, used in facts.inputs.items():
            content = json.dumps({"path": path, **_present(used, "sha256", "md5")})
            maker = _present(used, "stage", "fingerprint", "run")
            tags = {"mlflow.data.context": used.name, **{f"pipelines.{key}": value for key, value in maker.items()}}
            dataset = Dataset(path, used.sha256[:32], "dvc", content)
            inputs.append(DatasetInput(dataset, [InputTag(key, value) for key, value in tags.items()]))
        if inputs:
            self._log_inputs(run_id, inputs)

    def _log_inputs(self, run_id: str, inputs: "list[DatasetInput]") -> None:
        """Log inputs of a run. Of two runs that log the same new input at once MLflow refuses one, which then finds it there."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.log_inputs(run_id, datasets=inputs)
        except MlflowException as error:
            if not any(word in str(error).lower() for word in ("unique", "duplicate")):  # SQLite, PostgreSQL; MySQL
                raise
            self.client.log_inputs(run_id, datasets=inputs)

    def log_params(self, run_id: str, parameters: Mapping[str, Any]) -> None:
        """Log parameters flat, in as few requests as the server allows."""
        from mlflow.entities import Param

        flat = [Param(key, str(value)) for key, value in flatten(parameters).items()]
        for start in range(0, len(flat), PARAMS_OR_TAGS):
            self.client.log_batch(run_id, params=flat[start : start + PARAMS_OR_TAGS])

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run in one request; there are at most `PARAMS_OR_TAGS`."""
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _exists(self, run_id: str) -> bool:
        run = known_run(run_id, self.client)
        return run is not None and bool(run.info.lifecycle_stage == "active")

    def end_orphans(self) -> None:
        """Mark runs that a killed process left as RUNNING as KILLED: of a process that would be seen from here (`visible_from`),
        or of this machine (`installation`) before its last start. A container's before that could be of another machine.
        """
        running = "attributes.status = 'RUNNING' and tags.`pipelines."
        here = f"{running}visible_from` = '{visible_from()}'"
        dead = [run for run in self._search(here) if not is_alive(run.data.tags)]
        if machine := installation():
            before = f"{running}machine` = '{machine}' and tags.`pipelines.visible_from` != '{visible_from()}'"
            dead += self._search(before)
        for run in dead:
            now = self.client.get_run(
                run.info.run_id
            )  # it may have ended as it should, or have another owner, since it was found
            same_owner = all(now.data.tags.get(key) == run.data.tags.get(key) for key in owner())
            if now.info.status == "RUNNING" and same_owner:
                self.client.set_terminated(run.info.run_id, KILLED)

    def _search(self, filter_string: str) -> "list[Run]":
        return list(self.client.search_runs([self.experiment], filter_string, max_results=100))


def known_run(run_id: str, client: "MlflowClient") -> "Run | None":
    """Return a run, deleted or not, or None where the store answers that it has none. Raises MLflow's error where it fails to."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if not is_missing(error):
            raise
        return None


def artifact_text(run_id: str, path: str, client: "MlflowClient") -> str | None:
    """Return an artifact of a run as text, or None without the run or the artifact.

    Raises what MLflow raises where the store does not answer. (Its client downloads to a folder only.)
    """
    from mlflow.exceptions import MlflowException

    try:
        listed = client.list_artifacts(run_id, path.rpartition("/")[0] or None)
    except MlflowException as error:
        if not is_missing(error):
            raise
        return None
    if path not in {artifact.path for artifact in listed}:
        return None
    with tempfile.TemporaryDirectory(prefix="artifact-") as folder:
        return Path(client.download_artifacts(run_id, path, folder)).read_bytes().decode()


def _present(record: InputRecord, *keys: str) -> dict[str, str]:
    return {key: value for key, value in record.model_dump(include=set(keys)).items() if value}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat
