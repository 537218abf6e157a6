"""The people whom runs were evaluated on: whether they are the same in all runs, and the ones in the workspace.

Ids of captions and pictures count from 0 in every data set, so equal ids do not make equal queries or prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components.errors import DataError
from pipelines.comparing.runs import PEOPLE, ComparedRun
from pipelines.identity.fingerprint import digest, tree_digests
from pipelines.identity.known_digests import KnownDigests
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class People:
    """The data set in the workspace, and its digest as runs record it of their inputs."""

    folder: Path
    sha256: str


def people_here(workspace: Workspace) -> People | None:
    """Return the data set in the workspace, or None without one."""
    folder = workspace.path(PEOPLE)
    if not folder.is_dir():
        return None
    return People(folder, digest(tree_digests(folder, KnownDigests(workspace.home))))


def require_same_people(runs: Sequence[ComparedRun], stage: str) -> None:
    """Raise DataError unless all runs of `stage` are known to be evaluated on the same people as the first."""
    for run in runs:
        if run.stages[stage].people is None:
            raise DataError(
                f"no record is left of the {PEOPLE} that run {run.run_id[:8]} was evaluated on: run its stage again"
            )
    for run in runs[1:]:
        if run.stages[stage].people != runs[0].stages[stage].people:
            raise DataError(
                f"run {run.run_id[:8]} was evaluated on other {PEOPLE} than run {runs[0].run_id[:8]}: the same ids are other "
                "queries or prompts"
            )


def same_people(runs: Sequence[ComparedRun], stage: str) -> bool:
    """Return whether `require_same_people` is met."""
    try:
        require_same_people(runs, stage)
    except DataError:
        return False
    return True


def folder_of(people: People | None, run: ComparedRun, stage: str) -> Path | None:
    """Return the data set in the workspace if it is the one that `stage` of the run was evaluated on, else None."""
    return people.folder if people and people.sha256 == run.stages[stage].people else None
