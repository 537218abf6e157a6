"""`python -m pipelines pretrain`: the stages of pre-training, scheduled like those of `repro`, without DVC's books.

Every stage is resumable by itself, as any stage is: after a kill the same command goes on from the last checkpoints, and what is
finished is found in the scratch root. `dvc repro pretraining/dvc.yaml` calls this command for one part after the other.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from components.errors import DataError, ParameterError
from pipelines.errors import did_you_mean
from pipelines.graph import PRETRAINING, PRETRAINING_PREFIX, StageRun, runs_of
from pipelines.locks.waiting import grace_period
from pipelines.params import load_for
from pipelines.scheduling.durations import Durations
from pipelines.scheduling.live_view import LiveView
from pipelines.scheduling.needs import Decision, Need
from pipelines.scheduling.places import LocalPlaces
from pipelines.scheduling.plan import Plan
from pipelines.scheduling.progress import StageProgress
from pipelines.scheduling.runners import SAVING_SECONDS, Runners
from pipelines.scheduling.scheduler import run_plan
from pipelines.scheduling.stop_signals import StopSignals
from pipelines.tracking.pretraining_run import pretraining_execution
from pipelines.workspace import Workspace

PARTS: tuple[str, ...] = tuple(stage.name.removeprefix(PRETRAINING_PREFIX) for stage in PRETRAINING)


def pretrain(workspace: Workspace, parts: Sequence[str], jobs: int | None = None) -> int:
    """Bring the named parts (all, for none) up to date, `jobs` at a time (None: as many as there are cores for).

    Returns the exit code: that of the first failure, 0 without one. Raises ParameterError for an unknown part or a mistake in the
    recipe, and DataError where a part needs another that is not there.
    """
    if unknown := sorted(set(parts) - set(PARTS)):
        meant = did_you_mean(unknown[0], PARTS)
        raise ParameterError(f"{', '.join(unknown)}: no part of pre-training: one of {', '.join(PARTS)}{meant}")
    runs = [run for stage in PRETRAINING for run in runs_of(stage) if not parts or _part(run) in parts]
    recipe = load_for(PRETRAINING[0], workspace.root)
    _require_inputs(runs, workspace)
    durations = Durations(workspace.home, recipe)
    places = LocalPlaces(recipe, jobs)
    with (
        StopSignals() as signals,
        pretraining_execution(workspace) as execution,
        Runners(workspace, recipe.compute.threads, lambda: execution.id) as runners,
        LiveView(runs, lambda run, pid: StageProgress(run, pid, workspace.home, recipe), durations.known) as view,
    ):
        grace = grace_period() + SAVING_SECONDS
        summary = run_plan(Plan(runs, durations), _Unrecorded(), places, runners, view, signals, grace=grace)
        execution.exit_code = summary.exit_code
    view.summarise(summary)
    return summary.exit_code


def _part(run: StageRun) -> str:
    return run.stage.name.removeprefix(PRETRAINING_PREFIX)


def _require_inputs(runs: Sequence[StageRun], workspace: Workspace) -> None:
    made = {path for run in runs for path in run.outputs.values()}
    for run in runs:
        for path in run.inputs.values():
            if path not in made and not workspace.path(path).exists():
                part = PurePosixPath(path).name
                raise DataError(f"{path} is not there: run `python -m pipelines pretrain {part}` first")


class _Unrecorded:
    """In place of DVC: the runner of every stage is started, which takes a result that is finished in the scratch root."""

    def decide(self, run: StageRun, *, force: bool = False) -> Decision:
        return Decision(Need.RUN)

    def put_in_place(self, run: StageRun, decision: Decision) -> bool:
        return False

    def before_run(self, run: StageRun) -> None:
        pass

    def record(self, runs: Sequence[StageRun]) -> Mapping[str, str]:
        return {}
