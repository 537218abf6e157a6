"""`python -m pipelines sweep`: read and check the space, run the shared stages, run the trials, write the summary.

After a kill the same command resumes: first the trials that had begun, then new ones up to `--samples`.
"""

import json
import os
from typing import Any

from components.errors import ParameterError
from components.files import file_digest, write_atomically
from components.training.randomness import stream_seed
from pipelines import params
from pipelines.engine.warm import warm_workers
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.identity.fingerprint import LOCK, digest, tree_digests
from pipelines.identity.known_digests import KnownDigests
from pipelines.records.code_state import code_revision
from pipelines.schema.reading import to_yaml
from pipelines.sweeps import tuning
from pipelines.sweeps.driver import Driver, Limits, Sweep
from pipelines.sweeps.journal import BROKEN, Journal, Trial
from pipelines.sweeps.options import SweepOptions
from pipelines.sweeps.plan import make_plan, sections_read
from pipelines.sweeps.population import rounds
from pipelines.sweeps.progress import SweepProgress, print_results
from pipelines.sweeps.resources import budgeted_gpus
from pipelines.sweeps.results import best_trial, summary
from pipelines.sweeps.spaces import read_space
from pipelines.sweeps.sweep_runs import SweepRuns, earlier_trials
from pipelines.sweeps.trial import link_inputs
from pipelines.sweeps.validation import base_document, validate, validated, values_outside
from pipelines.terminal.console import TableConsole
from pipelines.tracking import runs as tracking
from pipelines.tracking.addresses import tracking_uri
from pipelines.tracking.runs import FAILED, FINISHED, KILLED
from pipelines.workspace import Workspace

RESULTS = "results/sweeps"


def sweep(options: SweepOptions, workspace: Workspace) -> None:
    """Run the sweep that `options` describe. Raises ParameterError before anything starts when it cannot run."""
    opened = open_sweep(options, workspace)
    limits = limits_of(options, opened)
    with opened.journal.lock():
        if options.retry_failed:
            for trial in opened.journal.trials().values():
                if trial.state == BROKEN:
                    opened.journal.write("again", trial.number)
        tracker = tracking.connect(workspace)
        if options.warm_start:
            opened.earlier = earlier_trials(tracker, options.warm_start, opened.space)
        runs = SweepRuns(tracker, opened.identity, opened.space)
        progress = SweepProgress(opened.space, limits.samples, options.workers, opened.journal.trials())
        _run(opened, runs, Driver(opened, runs, progress, limits), progress, options.workers)


def limits_of(options: SweepOptions, opened: Sweep) -> Limits:
    """Return the limits that `options` set. Raises ParameterError for GPU hours where a trial takes no GPU."""
    population, hours = opened.space.population, options.budget_gpu_hours
    samples = options.samples * (rounds(population, opened.document) if population else 1)
    if hours is None:
        return Limits(samples, options.budget_minutes)
    gpus = budgeted_gpus(hours, opened.params.compute, opened.space.resources, opened.plan.own)
    return Limits(samples, options.budget_minutes, hours, gpus)


def open_sweep(options: SweepOptions, workspace: Workspace) -> Sweep:
    """Read and check everything; starts and writes nothing.

    The identity covers what a trial's result depends on: the space, the parameters and code of its stages, what is in data/raw, the
    seeds, and the size of a population. The number of trials, how many run at once, and the budgets may change from call to call.
    """
    space = read_space(options.space, options.folder)
    if options.no_scheduler:
        space = space.model_copy(update={"scheduler": None})
    document = base_document(space, options.space, params.load(workspace.path("params.yaml")))
    validate(space, options.space, document)
    size = options.samples if space.population else 0
    if size == 1:
        raise ParameterError("--samples 1: a population has at least 2 members")
    plan = make_plan(space.stages, space.parameters)
    runs = (*plan.shared, *plan.own)
    sources = sorted({source for run in runs for source in stage_sources(run.stage)})
    identity = digest(
        {
            "space": space.model_dump(mode="json", exclude={"about"}),
            "parameters": sections_read(runs, document),
            "seed": document["seed"],
            "threads": document["compute"]["threads"],
            "sources": {source: file_digest(ROOT / source) for source in sources},
            "given": {path: tree_digests(workspace.path(path), KnownDigests(workspace.home)) for path in plan.given},
            "lock": file_digest(ROOT / LOCK),
            "seeds": options.seeds,
            "earlier": options.warm_start,
            **({"population": size} if size else {}),
        }
    )
    name = f"{options.space}-{identity[:10]}"
    return Sweep(
        name=options.space,
        identity=name,
        space=space,
        document=document,
        params=validated(document),
        plan=plan,
        workspace=workspace,
        seeds=seeds_of(document["seed"], options.seeds),
        journal=Journal.of_sweep(name, workspace.home),
        size=size,
        revision=code_revision(ROOT),
    )


def seeds_of(seed: int, count: int) -> list[int]:
    """Return the seed of params.yaml, which gives the results of `dvc repro`, and further seeds drawn from it."""
    return [seed, *(stream_seed(seed, "repetition", number) % 2**31 for number in range(1, count))]


def _run(opened: Sweep, runs: SweepRuns, driver: Driver, progress: SweepProgress, workers: int) -> None:
    status = FAILED
    keep_other_results(opened, progress)
    progress.print(f"sweep {opened.identity}: {len(driver.trials)} trials known, {driver.limits.samples} asked")
    for line in values_outside(opened.space, opened.document):
        progress.print(line)
    try:
        with progress:
            if driver.has_work():
                with warm_workers(opened.params.compute.threads):
                    run_shared_stages(opened, runs)
                    tuning.run(driver, workers)
        status = KILLED if driver.closing else FINISHED
    except KeyboardInterrupt:
        status = KILLED
        raise
    finally:
        trials = list(opened.journal.trials().values())
        best = best_trial(trials, opened.space.objectives)
        runs.close(status, trials, best if len(opened.space.objectives) == 1 else None)
        _write_summary(opened, runs, trials)


def run_shared_stages(opened: Sweep, runs: SweepRuns) -> None:
    """Run the stages that all trials share, in the sweep's own workspace."""
    from pipelines.engine.runner import run_stage

    if not opened.plan.shared:
        return
    workspace = opened.shared
    link_inputs(workspace.root, {path: opened.workspace.path(path) for path in opened.plan.given})
    write_atomically(workspace.path("params.yaml"), to_yaml(opened.document))
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri(opened.workspace)
    parent, status = runs.shared(), FAILED
    try:
        for run in opened.plan.shared:
            run_stage(run.address, workspace, parent)
        status = FINISHED
    except KeyboardInterrupt:
        status = KILLED
        raise
    finally:
        runs.close_shared(parent, status)


def keep_other_results(opened: Sweep, progress: SweepProgress) -> None:
    """Rename the results of another sweep of this name: the space, what it sweeps over, or its code have changed since."""
    path = opened.workspace.path(f"{RESULTS}/{opened.name}.json")
    try:
        other = json.loads(path.read_text(encoding="utf-8"))["sweep"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if other != opened.identity:
        kept = path.with_name(f"{other}.json")
        path.rename(kept)
        progress.print(
            f"{path.name} has the results of sweep {other}, of another space, other parameters, seeds or code: kept as {kept}"
        )


def _write_summary(opened: Sweep, runs: SweepRuns, trials: list[Trial]) -> None:
    from pipelines.sweeps.page import write_sweep_page

    settings: dict[str, Any] = {
        "run": runs.parent,
        "revision": opened.revision,
        "seeds": opened.seeds,
        "base": json.loads(json.dumps(opened.space.base)),
    }
    document = summary(opened.identity, opened.name, opened.space, opened.document, trials, settings)
    for path in (opened.journal.root / "results.json", opened.workspace.path(f"{RESULTS}/{opened.name}.json")):
        write_atomically(path, json.dumps(document, indent=1, sort_keys=True) + "\n")
    console = TableConsole(highlight=False, soft_wrap=True)
    print_results(trials, opened.space, console)
    counts = ", ".join(f"{count} {state}" for state, count in document["counts"].items() if count)
    console.print(f"wrote {RESULTS}/{opened.name}.json: {counts or 'no trials'}", markup=False)
    if document["best"] is not None:
        run = document["trials"][document["best"]]["run"]
        console.print(f"python -m pipelines promote {run}", markup=False)
        page = write_sweep_page(opened.journal.root / "results.json")
        console.print(f"wrote {page}", markup=False)
