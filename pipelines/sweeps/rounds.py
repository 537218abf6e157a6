"""One round of a member of a population: train to a step, and keep its checkpoints for members that resume from there.

Rounds have their own scratch root: they leave their stage unfinished, and a finished training with the same values, which may be in
the shared root, no longer has a checkpoint at the end of a round. The last round is a normal stage in the shared root.
"""

import shutil
from pathlib import Path

from components.errors import DataError
from pipelines.engine.runner import scratch_for, train_until
from pipelines.scratch.folder import Scratch, put_in_place
from pipelines.workspace import Workspace

KEPT = "round"
"""In a trial's folder: checkpoints and reported metrics at the end of its round."""


def train_round(
    address: str, workspace: Workspace, metric: str, step: int, origin: Path | None, kept: Path, parent_run: str
) -> Scratch:
    """Train a stage until it has reported `metric` at `step`, and copy its checkpoints to `kept`.

    `origin` holds the checkpoints to resume from. Returns the scratch folder. Raises what the stage raises, and DataError when it
    does not report the metric at that step.
    """
    resume_from_round(origin, scratch_for(address, workspace))
    scratch = train_until(address, workspace, metric, step, parent_run)
    checkpoint = scratch.checkpoint_at(metric, step)
    if checkpoint is None:
        raise DataError(f"{address} has no {metric} and checkpoint at step {step}: see the space's scheduler")
    put_in_place(scratch.metrics_file, kept / scratch.metrics_file.name)
    put_in_place(scratch.checkpoints, kept / scratch.checkpoints.name)
    for other in (kept / scratch.checkpoints.name / checkpoint.parent.name).glob("step-*"):
        if other.name > checkpoint.name:
            shutil.rmtree(other)
    return scratch


def resume_from_round(kept: Path | None, scratch: Scratch) -> None:
    """Copy the checkpoints that a round has kept into a scratch folder without any; its own are further on.

    If they are no longer kept, training starts from step 0, with the same result.
    """
    if kept is None or not kept.is_dir():
        return
    with scratch.lock():
        if not scratch.checkpoints.exists() and scratch.done() is None:
            put_in_place(kept / scratch.metrics_file.name, scratch.metrics_file)
            put_in_place(kept / scratch.checkpoints.name, scratch.checkpoints)
