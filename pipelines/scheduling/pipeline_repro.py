"""`python -m pipelines repro`: the whole of it, from the options to the exit code."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.graph import StageRun
from pipelines.locks.waiting import grace_period
from pipelines.params import Parameters, load
from pipelines.scheduling.checkout_lock import checkout_lock
from pipelines.scheduling.cluster_places import places_for
from pipelines.scheduling.durations import Durations
from pipelines.scheduling.dvc_repo import DvcRepo
from pipelines.scheduling.live_view import LiveView
from pipelines.scheduling.needs import Need
from pipelines.scheduling.parts import State
from pipelines.scheduling.places import Places
from pipelines.scheduling.plan import Plan, chosen_runs
from pipelines.scheduling.progress import StageProgress
from pipelines.scheduling.runners import SAVING_SECONDS, Runners
from pipelines.scheduling.scheduler import run_plan
from pipelines.scheduling.stop_signals import StopSignals
from pipelines.threads.cores import warn_of_too_many_threads
from pipelines.tracking.pipeline_run import pipeline_execution
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class ReproOptions:
    """The options of the command, named as they are written; those of `dvc repro` mean what they mean there."""

    stages: Sequence[str] = ()
    force: bool = False
    single_item: bool = False
    downstream: bool = False
    pull: bool = False
    dry: bool = False
    wait: bool = False
    fail_fast: bool = False
    jobs: int | None = None


def repro(workspace: Workspace, options: ReproOptions) -> int:
    """Bring the stages up to date, or print the plan for it. Returns the exit code: that of the first failure, 0 without one.

    Raises ParameterError, DataError or InfrastructureError where nothing could be started.
    """
    os.chdir(workspace.root)  # DVC's functions take paths relative to it
    params = load(workspace.path("params.yaml"), for_dvc=True)
    warn_of_too_many_threads(params.compute.threads)  # workers do so too, in their logs
    runs = chosen_runs(options.stages, single_item=options.single_item, downstream=options.downstream)
    durations = Durations(workspace.home, params)
    plan = Plan(runs, durations)
    places = places_for(params, options.jobs)
    if options.dry:
        from pipelines.scheduling.dry_run import print_plan

        print_plan(_repository(workspace, options), runs, durations, places.fits, force=options.force)
        return 0
    with checkout_lock(workspace.root, wait=options.wait):
        repository = _repository(workspace, options)
        with repository.reserved(plan.runs):
            return _run(workspace, params, plan, durations, repository, places, options)


def _repository(workspace: Workspace, options: ReproOptions) -> DvcRepo:
    return DvcRepo(
        workspace,
        options.stages,
        single_item=options.single_item,
        downstream=options.downstream,
        pull=options.pull and not options.dry,
    )


def _run(
    workspace: Workspace,
    params: Parameters,
    plan: Plan,
    durations: Durations,
    repository: DvcRepo,
    places: Places,
    options: ReproOptions,
) -> int:
    def progress(run: StageRun, pid: int) -> StageProgress:
        return StageProgress(run, pid, workspace.home, params)

    with (
        StopSignals() as signals,
        pipeline_execution(workspace) as execution,
        Runners(workspace, params.compute.threads, lambda: execution.id) as runners,
        LiveView(plan.runs, progress, durations.known) as view,
    ):
        summary = run_plan(
            plan,
            repository,
            places,
            runners,
            view,
            signals,
            force=options.force,
            fail_fast=options.fail_fast,
            grace=grace_period() + SAVING_SECONDS,
        )
        execution.exit_code = summary.exit_code
        found = {result.reason for result in summary.results.values() if result.state is State.FOUND}
        execution.took_results = bool(found - {Need.UNCHANGED})
    view.summarise(summary)
    return summary.exit_code
