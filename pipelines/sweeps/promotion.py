"""`python -m pipelines promote`: write a trial's parameters into params.yaml.

Only the searched parameters are written; the base of the sweep's space (smaller sizes, say) is only printed. Then `dvc repro` finds
the trial's stages finished in the scratch root, because their fingerprints are the same.
"""

import difflib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import DataError, ParameterError
from pipelines import params, presets
from pipelines.errors import InfrastructureError
from pipelines.provenance.sweep_claims import SWEEPS, record_promotion
from pipelines.sweeps import journal
from pipelines.sweeps.documents import nested, value_at
from pipelines.sweeps.sweep_runs import BASE, BEST, STATE, SWEEP, TRIAL, VALUES
from pipelines.tracking import runs as tracking
from pipelines.tracking.run_ids import find_run
from pipelines.tracking.runs import LEVEL, PARENT, Tracker
from pipelines.tracking.stage_tags import stage_runs
from pipelines.workspace import Workspace, git_output, run_dvc, run_git

PROMOTED = "pipelines.promoted"
"""Tag of a trial's run: where its parameters were written."""


@dataclass(frozen=True)
class Winner:
    """A trial, read from its MLflow run."""

    run_id: str
    sweep: str
    number: str
    values: Mapping[str, Any]
    base: Mapping[str, Any]
    """Nested, as in the space."""
    objectives: Mapping[str, float]
    stages: tuple[str, ...]
    unfinished: str | None
    """Why it has no result; None for a finished trial."""

    @property
    def origin(self) -> str:
        """The trial, its sweep, run and objectives in one line."""
        means = {name: value for name, value in self.objectives.items() if not name.endswith((".low", ".high"))}
        found = ", ".join(f"{name} {value:.6g}" for name, value in sorted(means.items()))
        return f"trial {self.number} of sweep {self.sweep}, MLflow run {self.run_id}: {found}"


def promote(
    run_id: str,
    workspace: Workspace,
    *,
    whole: bool = False,
    commit: bool = False,
    branch: str | None = None,
    anyway: bool = False,
) -> None:
    """Write the trial behind `run_id` into params.yaml, and show the difference; commit or branch as requested.

    Raises ParameterError for a run that is no trial's, or of a trial that has not finished (unless `anyway`), DataError when
    params.yaml has changes that a commit would take along.
    """
    file = workspace.path("params.yaml")
    if commit and branch:
        raise ParameterError("--commit and --branch: choose one")
    if (commit or branch) and git_output(workspace.root, "status", "--porcelain", "--", "params.yaml"):
        raise DataError("params.yaml has changes that are not committed: commit or undo them first")
    tracker = tracking.connect(workspace, create=False)
    winner = find_winner(tracker, run_id)
    if winner.unfinished and not anyway:
        raise ParameterError(
            f"{run_id}: trial {winner.number} of sweep {winner.sweep} {winner.unfinished}: choose another, or say --anyway"
        )
    before = file.read_text(encoding="utf-8")
    now = params.load(file).model_dump(mode="json")
    elsewhere = {path: value for path, value in presets.leaves_of(winner.base, now) if value_at(now, path) != value}
    presets.edit(file, nested({**(elsewhere if whole else {}), **winner.values}))
    changed = _difference(before, file.read_text(encoding="utf-8"))
    print(changed or "params.yaml holds these values already", end="\n" if not changed else "", flush=True)
    print(f"from {winner.origin}")
    if elsewhere and not whole:
        print(f"the sweep also had {', '.join(f'{k} = {v}' for k, v in elsewhere.items())}; --whole writes these too")
    location = _commit(workspace, winner, commit and bool(changed), branch)
    tracker.client.set_tag(winner.run_id, PROMOTED, location)
    record_promotion(workspace.home / SWEEPS / winner.sweep, int(winner.number))


def find_winner(tracker: Tracker, run_id: str) -> Winner:
    """Return the trial of this run, or the best one of a sweep's run. Raises ParameterError when it is neither, and as
    `find_run`."""
    run = find_run(tracker, run_id)
    if run.data.tags.get(LEVEL) == "sweep":
        if BEST not in run.data.tags:
            raise ParameterError(f"{run_id}: this sweep has no single best trial: name a trial's run")
        run = find_run(tracker, run.data.tags[BEST])
    tags = run.data.tags
    if tags.get(LEVEL) != "trial":
        raise ParameterError(f"{run_id}: not the run of a trial or of a sweep")
    parent = tracker.client.get_run(tags[PARENT]).data.tags
    prefix = "objective/"
    return Winner(
        run_id=run.info.run_id,
        sweep=tags[SWEEP],
        number=tags[TRIAL],
        values=json.loads(tags[VALUES]),
        base=json.loads(parent.get(BASE, "{}")),
        objectives={k.removeprefix(prefix): v for k, v in run.data.metrics.items() if k.startswith(prefix)},
        stages=tuple(sorted(stage_runs(tags))),
        unfinished=_unfinished(tags),
    )


def _unfinished(tags: Mapping[str, str]) -> str | None:
    match tags.get(STATE):
        case journal.COMPLETE:
            return None
        case journal.BROKEN:
            return f"failed ({tags.get('pipelines.error', 'without a reason')})"
        case journal.STOPPED:
            return "was stopped before its end"
    return "has not ended"


def _commit(workspace: Workspace, winner: Winner, commit: bool, branch: str | None) -> str:
    """Commit or branch, as requested. Returns where the parameters are now."""
    message = f"Promote {winner.origin}"
    if commit:
        command = ("commit", "--quiet", "--message", message, "--", "params.yaml")
        _require_success(run_git(workspace.root, *command), "git", *command)
        revision = git_output(workspace.root, "rev-parse", "HEAD").strip()
        print(f"committed {revision[:12]}")
        return f"commit {revision}"
    if branch:
        _run_dvc(workspace.root, "exp", "run", "--name", branch, "--message", message, *winner.stages)
        _run_dvc(workspace.root, "exp", "branch", branch, branch)
        print(f"branch {branch}: `git switch {branch}`, or `dvc exp show`")
        return f"branch {branch}"
    return f"params.yaml at {git_output(workspace.root, 'rev-parse', 'HEAD').strip() or 'no revision'}"


def _difference(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), "a/params.yaml", "b/params.yaml", n=1)
    return "".join(lines)


def _run_dvc(root: Path, *arguments: str) -> None:
    _require_success(run_dvc(root, *arguments), "dvc", *arguments)


def _require_success(done: "subprocess.CompletedProcess[str]", *command: str) -> None:
    """Raise InfrastructureError with the last line that a command printed, when it failed."""
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or str(done.returncode)).splitlines()
        raise InfrastructureError(f"`{' '.join(command)[:80]}` failed ({lines[-1][:200]}); params.yaml is written")
