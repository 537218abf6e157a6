"""The run of a pre-training, the parent of the runs of its stages: known by its recipe and its code."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from components.files import file_digest
from pipelines.errors import exit_code
from pipelines.graph import PRETRAINING
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.identity.fingerprint import LOCK, digest
from pipelines.params import load_for
from pipelines.tracking.parent_run import close_parent_run, open_parent_run
from pipelines.tracking.pipeline_run import CODE, REVISION
from pipelines.tracking.runs import LEVEL, Tracker, connect
from pipelines.workspace import Workspace, git_output

PRETRAINED = "pipelines.pretraining"
"""Tag of the run: digest of recipe and code."""


def open_pretraining_run(tracker: Tracker) -> str:
    """Return the run of the workspace's pre-training, created if need be, owned by this process and marked as running.

    Raises as `connect` does when the store stops answering.
    """
    recipe = load_for(PRETRAINING[0], tracker.workspace.root)
    values = recipe.only(set(type(recipe).model_fields) - {"compute"})
    files = sorted({LOCK, *(path for stage in PRETRAINING for path in stage_sources(stage))})
    code = digest({path: file_digest(ROOT / path) for path in files})
    identity = digest([values, recipe.compute.threads, code])

    def create() -> str:
        tags = {
            PRETRAINED: identity,
            LEVEL: "pretraining",
            CODE: code,
            REVISION: git_output(ROOT, "rev-parse", "HEAD").strip(),
            "mlflow.runName": f"pretraining {identity[:8]}",
        }
        run_id = str(tracker.client.create_run(tracker.experiment, tags=tags).info.run_id)
        tracker.log_params(run_id, values)
        return run_id

    return open_parent_run(tracker, PRETRAINED, identity, create)


@dataclass
class PretrainingExecution:
    """An execution under way: the id of its run, and the exit code of the command, which decides the run's status."""

    id: str
    exit_code: int = 0


@contextmanager
def pretraining_execution(workspace: Workspace) -> Iterator[PretrainingExecution]:
    """Own the run while the block runs stages, and set its status at the end, from `exit_code` or the block's error."""
    tracker = connect(workspace)
    execution = PretrainingExecution(open_pretraining_run(tracker))
    try:
        yield execution
    except BaseException as error:
        execution.exit_code = exit_code(error)
        raise
    finally:
        close_parent_run(tracker, execution.id, execution.exit_code)
