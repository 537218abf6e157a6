"""The run of a pipeline execution, the parent of the runs of its stages: known by parameters, code and data/raw.

`pipeline_execution` is for a command that runs many stages: it alone sets the run's owner and status. A stage that runs by itself,
as in `dvc repro`, opens the run with `open_pipeline_run`, and its end is the run's.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.files import file_digest
from pipelines import params
from pipelines.errors import INTERRUPTED, exit_code
from pipelines.graph import all_stages
from pipelines.identity.closure import ROOT, sources_behind
from pipelines.identity.fingerprint import LOCK, digest, tree_digests
from pipelines.identity.known_digests import KnownDigests
from pipelines.tracking.owners import owner
from pipelines.tracking.runs import FAILED, FINISHED, KILLED, LEVEL, Tracker, connect, creation_lock, explained_failures
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from mlflow.entities import Run

PIPELINE = "pipelines.pipeline"
"""Tag of a pipeline's run: its `pipeline_identity`."""
RAW = Path("data/raw")


class PipelineExecution:
    """An execution under way. Its run is found or created when `id` is first read, so a command that runs nothing opens no store.

    `exit_code` is the command's: 0 makes the run FINISHED, that of an interruption KILLED, any other FAILED.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.exit_code = 0
        self._run: tuple[Tracker, str] | None = None

    @property
    def id(self) -> str:
        """The id of the run, owned by this process and RUNNING. Raises as `connect` does when the store cannot be used."""
        if self._run is None:
            tracker = connect(self.workspace)
            self._run = tracker, open_pipeline_run(tracker)
        return self._run[1]

    def end(self) -> None:
        """Set the run's status. Raises what the client raises."""
        if self._run is None:
            return
        tracker, run_id = self._run
        status = {0: FINISHED, INTERRUPTED: KILLED}.get(self.exit_code, FAILED)
        tracker.client.set_terminated(run_id, status)


@contextmanager
def pipeline_execution(workspace: Workspace) -> Iterator[PipelineExecution]:
    """Own the pipeline's run while the block runs stages; set its status at the end, from `exit_code` or the block's error."""
    execution = PipelineExecution(workspace)
    try:
        yield execution
    except BaseException as error:
        execution.exit_code = exit_code(error)
        raise
    finally:
        execution.end()


def open_pipeline_run(tracker: Tracker) -> str:
    """Return the run of the workspace's pipeline, created if need be, owned by this process and marked as running.

    Raises as `connect` does when the store stops answering.
    """
    workspace = tracker.workspace
    identity = pipeline_identity(workspace)
    with explained_failures(workspace):
        with creation_lock(workspace):
            found = find_pipeline_run(tracker, identity)
            run_id = str(found.info.run_id) if found else _create(tracker, identity)
        # When this process is killed, `end_orphans` finds this run too.
        tracker.set_tags(run_id, {**owner(), **_experiment_name()})
        tracker.client.update_run(run_id, status="RUNNING")
    return run_id


def find_pipeline_run(tracker: Tracker, identity: str) -> "Run | None":
    """Return the first pipeline run with this `pipeline_identity`."""
    return tracker.find(f"tags.`{PIPELINE}` = '{identity}'", "ASC")


def pipeline_identity(workspace: Workspace) -> str:
    """Return the digest of what identifies a pipeline execution: parameters, sources and packages of all stages, and data/raw.

    Of `compute` only the threads count, as in the fingerprint of a stage: where stages run makes no other pipeline.
    """
    parameters = params.load(workspace.path("params.yaml"))
    sources = sources_behind([f"pipelines.stages.{stage.name}" for stage in all_stages()])
    return digest(
        {
            "parameters": parameters.only(set(params.Parameters.model_fields) - {"compute"}),
            "threads": parameters.compute.threads,
            "sources": {source: file_digest(ROOT / source) for source in sources},
            "lock": file_digest(ROOT / LOCK),
            "raw": tree_digests(workspace.path(str(RAW)), KnownDigests(workspace.home)),
        }
    )


def _create(tracker: Tracker, identity: str) -> str:
    tags = {PIPELINE: identity, LEVEL: "pipeline", "mlflow.runName": f"pipeline {identity[:8]}"}
    run_id = str(tracker.client.create_run(tracker.experiment, tags=tags).info.run_id)
    parameters = params.load(tracker.workspace.path("params.yaml"))
    tracker.log_params(run_id, parameters.model_dump(mode="json"))
    return run_id


def _experiment_name() -> dict[str, str]:
    """Return the tag by which a row of `dvc exp show` finds this run; {} outside `dvc exp run`."""
    name = os.environ.get("DVC_EXP_NAME")
    return {"dvc.exp_name": name} if name else {}
