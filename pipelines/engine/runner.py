"""The life of a stage.

    parameters -> fingerprint -> finished before? put the outputs in place and stop
                              -> open the MLflow run -> run the stage function in a child process -> outputs final -> in place

The stage function runs in a child process (`pipelines.engine.worker`), so that this one sets the run's status whatever kills the
child. While the child imports torch, this process imports MLflow; the child begins only when the tracking server has answered.
"""

import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from components.files import write_atomically
from pipelines.dvc_files.dvc_lock import dvc_md5
from pipelines.engine.attempt import Attempt
from pipelines.engine.child import (
    WORKER,
    Child,
    StopSignal,
    catch_sigterm,
    module_of,
    send_go,
    stage_process,
    usage_of,
    wait,
)
from pipelines.engine.cost import Meter, throughput
from pipelines.errors import INTERRUPTED, InfrastructureError, StageFailedError, exit_code, one_line
from pipelines.graph import PRETRAINING, StageRun, all_runs
from pipelines.locks.waiting import grace_period
from pipelines.records.stage_record import CHEAP_BYTES, mlflow_tags, tracked_models
from pipelines.scratch.claims import claim
from pipelines.scratch.folder import FolderLock, Scratch, put_in_place
from pipelines.scratch.manifest import Manifest
from pipelines.scratch.metric_log import MetricLog
from pipelines.scratch.spent import Spent
from pipelines.tracking import runs as tracking
from pipelines.tracking.addresses import tracking_uri
from pipelines.tracking.delivery import TrackedRun
from pipelines.tracking.models import TrackedModel
from pipelines.tracking.pipeline_run import describe_pipeline, open_pipeline_run
from pipelines.tracking.pretraining_run import open_pretraining_run
from pipelines.tracking.run_state import STATE_FILE, RunState
from pipelines.tracking.runs import FAILED, FINISHED, KILLED, flatten
from pipelines.tracking.system_metrics import system_metrics
from pipelines.workspace import Workspace

DELIVERY_SECONDS = 2.0


@dataclass(frozen=True)
class StageOutcome:
    """The result of a stage; `restored` when it was finished before."""

    fingerprint: str
    restored: bool
    metrics: dict[str, Any]


def run_stage(address: str, workspace: Workspace, parent_run: str | None = None) -> StageOutcome:
    """Bring the outputs of a stage (`name` or `name@arm`) up to date in `workspace`.

    `parent_run` is the MLflow run to put the stage's run under; its creator sets its owner and status. Without, that is the
    pipeline's, which this stage opens and ends. Raises ParameterError, DataError, InfrastructureError, StageFailedError (the
    stage's process failed and printed why) or KeyboardInterrupt.
    """
    attempt = Attempt.at(address, workspace)
    run, scratch = attempt.run, attempt.scratch
    with scratch.lock() as lock:
        claim(scratch.folder, workspace.root)
        done = scratch.done()
        if done and not set(run.all_outputs) <= set(done.outputs):  # of code with fewer outputs
            done = None
            (scratch.folder / STATE_FILE).unlink(
                missing_ok=True
            )  # a run of its own: parameters of a run cannot be changed
        restored = done is not None
        if done is None:
            done = _run(attempt, lock, parent_run)
        else:
            print(f"{run.address}: found finished in {scratch.folder.name}", flush=True)
            _close_open_run(attempt, done)
        attempt.require_unchanged()
        for path in done.outputs:
            put_in_place(scratch.outputs / path, workspace.path(path))
    if parent_run is None and not restored and attempt.run == all_runs()[-1]:
        describe_pipeline(workspace)
    return StageOutcome(attempt.fingerprint, restored, done.metrics)


def scratch_for(address: str, workspace: Workspace) -> Scratch:
    """Return the scratch folder that `run_stage` would use now. Raises as it does for parameters and inputs."""
    return Attempt.at(address, workspace).scratch


def train_until(address: str, workspace: Workspace, metric: str, step: int, parent_run: str | None = None) -> Scratch:
    """Train a stage until it has reported `metric` at `step`, stop it one step later, and return its scratch folder.

    The stage can be resumed. Does nothing if its checkpoint at this step exists. Raises as `run_stage`. A round of a population
    (`pipelines.sweeps.rounds`) ends like this: with a checkpoint in mid-schedule, and neither outputs nor a manifest.
    """
    attempt = Attempt.at(address, workspace)
    scratch = attempt.scratch
    with scratch.lock() as lock:
        claim(scratch.folder, workspace.root)
        if scratch.checkpoint_at(metric, step) is None:
            try:
                _run(attempt, lock, parent_run, (metric, step))
            except KeyboardInterrupt:
                if scratch.checkpoint_at(metric, step) is None:
                    raise
    return scratch


def _run(attempt: Attempt, lock: FolderLock, parent_run: str | None, until: tuple[str, int] | None = None) -> Manifest:
    """Run the stage function once, tracked. Returns the manifest.

    With `until` (metric, step), training is stopped, as by SIGTERM, one step after it has reported that.
    """
    run, scratch, compute = attempt.run, attempt.scratch, attempt.params.compute
    scratch.begin()
    if until:
        scratch.stop_after_file.write_text(json.dumps({"metric": until[0], "step": until[1]}))
    spent = _spent(scratch, lock)
    meter = Meter(spent, scratch.worker_group)
    with catch_sigterm() as stop, stage_process(run, attempt.params, scratch, attempt.workspace, lock) as process:
        tracker = tracking.connect(attempt.workspace)
        facts, record = attempt.facts()
        open_parent = open_pretraining_run if run.stage in PRETRAINING else open_pipeline_run
        parent = parent_run or open_parent(tracker)
        tracked = tracker.open(scratch.folder, facts, parent, ends_parent=parent_run is None)
        try:
            send_go(process)
            # The cost of a job is noted inside it.
            noted = meter.noted(lambda: usage_of(process)) if module_of(run, compute) == WORKER else nullcontext()
            with noted, system_metrics(tracked.run_id, tracking_uri(attempt.workspace)):
                code = _watch(run, process, tracked, scratch, lock, stop)
            if code < 0:
                name = signal.Signals(-code).name
                raise InfrastructureError(f"{run.address}: its process was ended by {name}: run again to resume")
            if code > 0:
                lock.require()  # a worker that lost the folder ends without a word
                raise StageFailedError(f"{run.address} failed", code)
            metrics = json.loads(scratch.result_file.read_text())
            _write_tables(run, scratch, metrics)
            remote, group = scratch.remote_execution(), scratch.worker_group()
            cost = spent.total(remote.cost) if remote else meter.total(usage_of(process))
            if remote:
                record = record.model_copy(update={"ray": remote.where.ray, "hardware": remote.where.hardware})
            elif group and group.hardware:
                record = record.model_copy(update={"hardware": group.hardware})
            lock.require()
            done = scratch.finish(
                run.all_outputs,
                Manifest(
                    fingerprint=attempt.fingerprint,
                    stage=run.address,
                    metrics=metrics,
                    run=tracked.run_id,
                    cost={**cost, **throughput(MetricLog(scratch.metrics_file), attempt.own, run.stage.name)},
                    provenance=record,
                    md5={path: dvc_md5(scratch.writing / path, CHEAP_BYTES) for path in run.all_outputs},
                ),
            )
        except BaseException as error:
            killed = exit_code(error) == INTERRUPTED
            _close(tracked, KILLED if killed else FAILED, timeout=2 if killed else 20)
            if killed:
                raise KeyboardInterrupt(_paused(run, scratch)) from error
            raise
        _close(tracked, FINISHED, *_final(run, done), timeout=20)
    return done


def _spent(scratch: Scratch, lock: FolderLock) -> Spent:
    """Return what earlier attempts in a scratch folder have cost; notes go to the same file, as long as the folder is held."""

    def write(text: str) -> None:
        if scratch.folder.is_dir() and not lock.lease.lost:
            write_atomically(scratch.cost_file, text)

    return Spent(scratch.cost_file.read_text() if scratch.cost_file.exists() else None, write)


def _paused(run: StageRun, scratch: Scratch) -> str:
    """Return how far a stage that was interrupted has come."""
    steps = sorted(scratch.checkpoints.glob("*/step-*"), key=lambda folder: folder.stat().st_mtime)
    if steps:
        return f"{run.address}: paused at step {int(steps[-1].name.removeprefix('step-'))}: run again to resume"
    return f"{run.address}: stopped{' before its first checkpoint' if run.stage.trains else ''}: run again"


def _final(run: StageRun, done: Manifest) -> tuple[dict[str, float], dict[str, str], list[TrackedModel]]:
    """The final metrics of a finished run, its tags, and its models."""
    numbers = {**flatten(done.metrics), **done.cost}
    metrics = {key: float(value) for key, value in numbers.items() if isinstance(value, (int, float))}
    return metrics, mlflow_tags(done.provenance) if done.provenance else {}, tracked_models(run, done)


def _close_open_run(attempt: Attempt, done: Manifest) -> None:
    """Close the run of a finished stage if it is still open: its runner was killed at the end, or the server was away."""
    scratch, workspace = attempt.scratch, attempt.workspace
    state = RunState.find(scratch.folder)
    if state is None or state.closed or state.run is None or state.run != done.run:
        return
    try:
        tracker = tracking.connect(workspace)
        if state.ended is None:
            tracked = TrackedRun(tracker.client, state.run, scratch.folder, unconfirmed=True)
            tracked.end(FINISHED, *_final(attempt.run, done))
        tracker.close_finished(scratch.folder)
    except Exception as error:  # as in `_close`
        _warn_open(state.run, FINISHED, error)


def _write_tables(run: StageRun, scratch: Scratch, metrics: dict[str, Any]) -> None:
    """Write metrics, headline numbers and curves as files, which are outputs like any other."""
    tables = {run.metrics: json.dumps(metrics, indent=1, sort_keys=True) + "\n"}
    if run.headline_file:
        tables[run.headline_file] = json.dumps(run.headlines(metrics), indent=1, sort_keys=True) + "\n"
    if run.curves:
        tables[run.curves] = MetricLog(scratch.metrics_file).table()
    for path, text in tables.items():
        write_atomically(scratch.writing / path, text)


def _watch(
    run: StageRun, process: Child, tracked: TrackedRun, scratch: Scratch, lock: FolderLock, stop: StopSignal
) -> int:
    """Wait for the process, delivering metrics meanwhile. Returns its exit code (negative for a signal).

    After SIGTERM, training is requested to save a checkpoint at its next step and stop; any other stage ends at once.
    """
    delivered = time.monotonic()
    requested = None
    stop.interrupts = not run.stage.trains
    while (code := wait(process)) is None:
        if lock.lease.lost:
            process.kill()  # at once, without a last checkpoint: another process has taken the folder
            lock.require()
        if stop.received and requested is None:
            requested = time.monotonic()
            scratch.stop_file.touch()
        if requested is not None and time.monotonic() - requested > grace_period():
            raise KeyboardInterrupt
        if time.monotonic() - delivered > DELIVERY_SECONDS:
            tracked.deliver()
            delivered = time.monotonic()
    return INTERRUPTED if requested is not None and code else code


def _close(
    tracked: TrackedRun,
    status: str,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    models: Sequence[TrackedModel] = (),
    *,
    timeout: float,
) -> None:
    """End and close the MLflow run. If the server is away, warn and leave it to the next stage."""
    try:
        tracked.end(status, metrics or {}, tags, models)
        tracked.deliver(timeout=timeout)
        tracked.close()
    except Exception as error:  # clients raise many types, and the outputs on disk matter more than the run's end
        _warn_open(tracked.run_id, status, error)


def _warn_open(run_id: str, status: str, error: Exception) -> None:
    reason = one_line(error)
    print(
        f"warning: run {run_id} could not be closed as {status} ({reason}); the next stage or `repro` does it",
        file=sys.stderr,
        flush=True,
    )
