"""The run of a pre-training, the parent of the runs of its stages: known by its recipe and its code."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from components.files import file_digest
from pipelines.errors import INTERRUPTED, exit_code, one_line
from pipelines.graph import PRETRAINING
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.identity.fingerprint import LOCK, digest
from pipelines.params import load_for
from pipelines.tracking.owners import owner
from pipelines.tracking.pipeline_run import CODE, REVISION
from pipelines.tracking.runs import FAILED, FINISHED, KILLED, LEVEL, Tracker, connect, creation_lock, explained_failures
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
    with explained_failures(tracker.workspace):
        with creation_lock(tracker.workspace):
            found = tracker.find(f"tags.`{PRETRAINED}` = '{identity}'", "ASC")
            if found is None:
                tags = {
                    PRETRAINED: identity,
                    LEVEL: "pretraining",
                    CODE: code,
                    REVISION: git_output(ROOT, "rev-parse", "HEAD").strip(),
                    "mlflow.runName": f"pretraining {identity[:8]}",
                }
                run_id = str(tracker.client.create_run(tracker.experiment, tags=tags).info.run_id)
                tracker.log_params(run_id, values)
            else:
                run_id = str(found.info.run_id)
        tracker.set_tags(run_id, owner())  # when this process is killed, `end_orphans` finds this run too
        tracker.client.update_run(run_id, status="RUNNING")
    return run_id


@contextmanager
def pretraining_execution(workspace: Workspace) -> Iterator[str]:
    """Own the run while the block runs stages, and set its status at the end. Yields its id."""
    tracker = connect(workspace)
    run_id = open_pretraining_run(tracker)
    status = FINISHED
    try:
        yield run_id
    except BaseException as error:
        status = KILLED if exit_code(error) == INTERRUPTED else FAILED
        raise
    finally:
        try:
            tracker.client.set_terminated(run_id, status)
        except Exception as error:  # clients raise many types, and the results are on disk
            print(
                f"warning: run {run_id} could not be closed as {status} ({one_line(error)})",
                file=sys.stderr,
                flush=True,
            )
