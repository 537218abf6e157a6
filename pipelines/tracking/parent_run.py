"""A run that is the parent of the runs of stages: that of a pipeline execution, or of a pre-training."""

import sys
from collections.abc import Callable, Mapping

from pipelines.errors import INTERRUPTED, one_line
from pipelines.tracking.owners import owner
from pipelines.tracking.runs import FAILED, FINISHED, KILLED, Tracker, creation_lock, explained_failures


def open_parent_run(
    tracker: Tracker, tag: str, identity: str, create: Callable[[], str], tags: Mapping[str, str] | None = None
) -> str:
    """Return the first run whose `tag` is `identity`, created if need be, owned by this process and marked as running.

    `create` makes the run and returns its id; `tags` are set whether it was there or not. Raises as `connect` does when the store
    stops answering.
    """
    with explained_failures(tracker.workspace):
        with creation_lock(tracker.workspace):
            found = tracker.find(f"tags.`{tag}` = '{identity}'", "ASC")
            run_id = str(found.info.run_id) if found else create()
        # When this process is killed, `end_orphans` finds this run too.
        tracker.set_tags(run_id, {**owner(), **(tags or {})})
        tracker.client.update_run(run_id, status="RUNNING")
    return run_id


def close_parent_run(tracker: Tracker, run_id: str, exit_code: int) -> bool:
    """Set the run's status by the exit code of its command; returns whether that was FINISHED, and is in the store.

    A store that does not answer causes a warning.
    """
    status = {0: FINISHED, INTERRUPTED: KILLED}.get(exit_code, FAILED)
    written = warn_of_failure(run_id, f"closed as {status}", lambda: tracker.client.set_terminated(run_id, status))
    return written and status == FINISHED


def warn_of_failure(run_id: str, what: str, write: Callable[[], object]) -> bool:
    """Call `write`; where that fails, print that the run could not be `what`, and return False. The results are on disk."""
    try:
        write()
    except Exception as error:  # clients raise many types
        print(f"warning: run {run_id} could not be {what} ({one_line(error)})", file=sys.stderr, flush=True)
        return False
    return True
