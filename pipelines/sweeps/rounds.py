"""A round of a population's member: train to a step, and keep what whoever goes on from there needs.

Rounds have a scratch root of their own: they leave their stage unfinished, and a finished training of the same values, which the
shared root may hold, has no checkpoint at the end of a round any more. The last round is a stage like any other, in the shared
root.
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
    """Train a stage until it has reported `metric` at `step`, from what `origin` has kept if it is given, and keep the state there.

    Returns the scratch folder. Raises what the stage raises, and DataError when it reports no such metric at that step.
    """
    go_on_from(origin, scratch_for(address, workspace))
    scratch = train_until(address, workspace, metric, step, parent_run)
    checkpoint = scratch.checkpoint_at(metric, step)
    if checkpoint is None:
        raise DataError(f"{address} has no {metric} and checkpoint at step {step}: see the space's scheduler")
    put_in_place(scratch.reported, kept / scratch.reported.name)
    put_in_place(scratch.checkpoints, kept / scratch.checkpoints.name)
    for other in (kept / scratch.checkpoints.name / checkpoint.parent.name).glob("step-*"):
        if other.name > checkpoint.name:
            shutil.rmtree(other)
    return scratch


def go_on_from(kept: Path | None, scratch: Scratch) -> None:
    """Give a scratch folder without checkpoints those that a round has kept. Its own go on further, and are as good.

    What is no longer kept is computed again from the start, with the same result: it only takes longer.
    """
    if kept is None or not kept.is_dir():
        return
    with scratch.lock():
        if not scratch.checkpoints.exists() and scratch.done() is None:
            put_in_place(kept / scratch.reported.name, scratch.reported)
            put_in_place(kept / scratch.checkpoints.name, scratch.checkpoints)
