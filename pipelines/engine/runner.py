"""The life of a stage.

    parameters -> fingerprint -> finished before? put the outputs in place and stop
                              -> open the MLflow run -> work, in a process of its own -> outputs final -> in place

The work is done by `pipelines.engine.worker` in a child process, so that this one can own the run's status whatever kills the
work. While the child imports torch, this process imports MLflow; the child begins only when the tracking server has answered.
"""

import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import DataError, ParameterError
from pipelines import graph
from pipelines.dvc_files.dvc_lock import dvc_md5
from pipelines.engine.child import Child, StopSignal, interruptible, send_go, wait, working
from pipelines.engine.cost import Meter, throughput
from pipelines.errors import INTERRUPTED, InfrastructureError, StageFailedError, one_line
from pipelines.graph import StageRun
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import fingerprint, tree_digests
from pipelines.locks.waiting import grace_period
from pipelines.params import Parameters, load
from pipelines.records.code_state import code_state
from pipelines.records.manifests import find_by_content
from pipelines.records.stage_record import CHEAP_BYTES, input_record, mlflow_tags, stage_record
from pipelines.scratch.folder import FolderLock, Scratch, folder_name, put_in_place
from pipelines.scratch.manifest import InputRecord, Manifest, StageRecord
from pipelines.scratch.metric_log import MetricLog
from pipelines.tracking import runs as tracking
from pipelines.tracking.delivery import TrackedRun
from pipelines.tracking.run_state import RunState
from pipelines.tracking.runs import FAILED, FINISHED, KILLED, RunFacts, flatten
from pipelines.tracking.system_metrics import machine_watched
from pipelines.workspace import Workspace

DELIVERY_SECONDS = 2.0


@dataclass(frozen=True)
class Outcome:
    """How a stage ended well."""

    fingerprint: str
    restored: bool
    metrics: dict[str, Any]


def run_stage(address: str, workspace: Workspace, parent_run: str | None = None) -> Outcome:
    """Bring the outputs of a stage (`name` or `name@arm`) up to date in `workspace`.

    Raises ParameterError, DataError, InfrastructureError, StageFailedError (the work failed and said why) or KeyboardInterrupt.
    """
    attempt = _attempt(address, workspace)
    run, scratch = attempt.run, attempt.scratch
    with scratch.lock() as lock:
        done = scratch.done()
        restored = done is not None
        if done is None:
            done = _work(attempt, workspace, lock, parent_run)
        else:
            print(f"{run.address}: found finished in {scratch.folder.name}", flush=True)
            _close_what_was_left(scratch, workspace, done)
        _require_unchanged(attempt, workspace)
        for path in done.outputs:
            put_in_place(scratch.outputs / path, workspace.path(path))
    return Outcome(attempt.identity, restored, done.metrics)


def scratch_for(address: str, workspace: Workspace) -> Scratch:
    """The scratch folder in which `run_stage` would work now. Raises as it does for parameters and inputs."""
    return _attempt(address, workspace).scratch


def train_until(address: str, workspace: Workspace, metric: str, step: int, parent_run: str | None = None) -> Scratch:
    """Train a stage until it has reported `metric` at `step` and taken one step more, and leave it unfinished, to be gone on with.

    Does nothing where its checkpoint at this step is there. Returns its scratch folder. Raises as `run_stage`.
    """
    attempt = _attempt(address, workspace)
    scratch = attempt.scratch
    with scratch.lock() as lock:
        if scratch.checkpoint_at(metric, step) is None:
            try:
                _work(attempt, workspace, lock, parent_run, (metric, step))
            except KeyboardInterrupt:
                if scratch.checkpoint_at(metric, step) is None:
                    raise
    return scratch


@dataclass(frozen=True)
class _Attempt:
    """A stage, what it reads, and the folder in which it works."""

    run: StageRun
    params: Parameters
    inputs: dict[str, Path]
    identity: str
    scratch: Scratch

    @property
    def own(self) -> dict[str, Any]:
        """The parameters that the stage reads."""
        return self.params.only(self.run.stage.reads)


def _attempt(address: str, workspace: Workspace) -> _Attempt:
    run = graph.find(address)
    params = load(workspace.path("params.yaml"))
    inputs = {name: workspace.path(path) for name, path in run.inputs.items()}
    _require(run, inputs)
    identity = fingerprint(run, params.only(run.stage.reads), inputs, params.compute.threads)
    return _Attempt(run, params, inputs, identity, Scratch(workspace.home / folder_name(run.address, identity)))


def _require(run: StageRun, inputs: dict[str, Path]) -> None:
    missing = [run.inputs[name] for name, path in inputs.items() if not path.exists()]
    if missing:
        raise DataError(
            f"{run.address}: {', '.join(missing)} not there: run `dvc repro {run.address}`, or `dvc pull` it"
        )


def _require_unchanged(attempt: _Attempt, workspace: Workspace) -> None:
    """DVC records what parameters, inputs and code are at a stage's end; they must be what it read at its start."""
    run = attempt.run
    try:
        own = load(workspace.path("params.yaml")).only(run.stage.reads)
        now = fingerprint(run, own, attempt.inputs, attempt.params.compute.threads)
    except (ParameterError, OSError):
        now = ""
    if now != attempt.identity:
        raise InfrastructureError(
            f"{run.address}: its parameters, inputs or code were changed while it ran: its result is kept for what it read, "
            "and not put in place; run again"
        )


def _work(
    attempt: _Attempt,
    workspace: Workspace,
    lock: FolderLock,
    parent_run: str | None,
    until: tuple[str, int] | None = None,
) -> Manifest:
    """One attempt, tracked. Returns the manifest.

    Training leaves, as after SIGTERM, one step after it has reported what `until` names: (metric, step).
    """
    run, params, own, scratch = attempt.run, attempt.params, attempt.own, attempt.scratch
    scratch.begin()
    if until:
        scratch.until.write_text(json.dumps({"metric": until[0], "step": until[1]}))
    meter = Meter()
    with interruptible() as stop, working(run, params, scratch, workspace, lock) as process:
        tracker = tracking.connect(workspace)
        facts, record = _facts(attempt, workspace)
        tracked = tracker.open(scratch.folder, facts, parent_run)
        try:
            send_go(process)
            with machine_watched(tracked.run_id, tracking.tracking_uri(workspace)):
                code = _watch(run, process, tracked, scratch, lock, stop)
            if code < 0:
                name = signal.Signals(-code).name
                raise InfrastructureError(
                    f"{run.address}: its process was ended by {name}: run again, to go on from there"
                )
            if code > 0:
                raise StageFailedError(f"{run.address} failed", code)
            metrics = json.loads(scratch.result.read_text())
            _write_tables(run, scratch, metrics)
            remote = scratch.remote_execution()
            cost = remote.cost if remote else meter.read(run, params.compute, getattr(process, "usage", None))
            if remote:
                record = record.model_copy(update={"ray": remote.where.ray, "hardware": remote.where.hardware})
            lock.require()
            done = scratch.finish(
                run.all_outputs,
                Manifest(
                    fingerprint=attempt.identity,
                    stage=run.address,
                    metrics=metrics,
                    run=tracked.run_id,
                    cost={**cost, **throughput(MetricLog(scratch.reported), own, run.stage.name)},
                    provenance=record,
                    md5={path: dvc_md5(scratch.writing / path, CHEAP_BYTES) for path in run.all_outputs},
                ),
            )
        except BaseException as error:
            killed = isinstance(error, KeyboardInterrupt) or getattr(error, "code", None) == INTERRUPTED
            _close(tracked, KILLED if killed else FAILED, {}, timeout=2 if killed else 20)
            if killed:
                raise KeyboardInterrupt from error
            raise
        _close(tracked, FINISHED, _final(done), timeout=20, tags=mlflow_tags(record))
    return done


def _final(done: Manifest) -> dict[str, float]:
    """The final metrics of a finished run."""
    numbers = {**flatten(done.metrics), **done.cost}
    return {key: float(value) for key, value in numbers.items() if isinstance(value, (int, float))}


def _close_what_was_left(scratch: Scratch, workspace: Workspace, done: Manifest) -> None:
    """A runner killed after its result was complete, or a server away at its end, leaves a run to be closed."""
    state = RunState.find(scratch.folder)
    if state is None or state.closed or state.run is None or state.run != done.run:
        return
    try:
        tracker = tracking.connect(workspace)
        if state.ended is None:
            TrackedRun(tracker.client, state.run, scratch.folder, unconfirmed=True).end(
                FINISHED, _final(done), mlflow_tags(done.provenance) if done.provenance else {}
            )
        tracker.close_finished(scratch.folder)
    except Exception as error:  # as in `_close`
        _warn_open(state.run, FINISHED, error)


def _write_tables(run: StageRun, scratch: Scratch, metrics: dict[str, Any]) -> None:
    """Metrics and curves as files: outputs like any other."""
    tables = {run.metrics: json.dumps(metrics, indent=1, sort_keys=True) + "\n"}
    if run.curves:
        tables[run.curves] = MetricLog(scratch.reported).table()
    for path, text in tables.items():
        file = scratch.writing / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def _watch(
    run: StageRun,
    process: Child,
    tracked: TrackedRun,
    scratch: Scratch,
    lock: FolderLock,
    stop: StopSignal,
) -> int:
    """Wait for the work, delivering metrics meanwhile. Returns its exit code (negative for a signal).

    After SIGTERM, training is asked to save a checkpoint at its next step and go; other work ends at once.
    """
    delivered = time.monotonic()
    asked = None
    stop.interrupts = not run.stage.trains
    while (code := wait(process)) is None:
        if lock.lease.lost:
            process.kill()  # at once: the folder is another's now, also for a last checkpoint
            lock.require()
        if stop.received and asked is None:
            asked = time.monotonic()
            scratch.leave.touch()
        if asked is not None and time.monotonic() - asked > grace_period():
            raise KeyboardInterrupt
        if time.monotonic() - delivered > DELIVERY_SECONDS:
            tracked.deliver()
            delivered = time.monotonic()
    return INTERRUPTED if asked is not None and code else code


def _close(
    tracked: TrackedRun, status: str, metrics: dict[str, float], timeout: float, tags: dict[str, str] | None = None
) -> None:
    """Give the run its end. A server that is away now costs a warning, and is told later."""
    try:
        tracked.end(status, metrics, tags)
        tracked.deliver(timeout=timeout)
        tracked.close()
    except Exception as error:  # whatever a server answers: the outputs are on disk, and worth more than the run's end
        _warn_open(tracked.run_id, status, error)


def _warn_open(run_id: str, status: str, error: Exception) -> None:
    reason = one_line(error)
    print(
        f"warning: run {run_id} could not be closed as {status} ({reason}); the next run of a stage does it",
        file=sys.stderr,
        flush=True,
    )


def _facts(attempt: _Attempt, workspace: Workspace) -> tuple[RunFacts, StageRecord]:
    """What MLflow shows of this attempt, and the record of where it comes from that goes into the DONE manifest."""
    run, params, own, identity = attempt.run, attempt.params, attempt.own, attempt.identity
    code = code_state(ROOT)  # of the code that runs; the workspace of a trial is no checkout
    inputs: dict[str, InputRecord] = {}
    for name, path in run.inputs.items():
        digests = tree_digests(workspace.path(path))
        made_by = find_by_content(path, digests, workspace.home)
        inputs[path] = input_record(name, workspace.path(path), digests, made_by)
    record = stage_record(run, own, params, code, inputs)
    tags = {
        "pipelines.stage": run.stage.name,
        "pipelines.arm": run.arm or "",
        "pipelines.fingerprint": identity,
        "pipelines.seed": str(params.seed),
        "pipelines.workers": str(params.compute.workers),
        "pipelines.threads": str(params.compute.threads),
        "pipelines.device": params.compute.device,
        **mlflow_tags(record),
    }
    return RunFacts(f"{run.address}/{identity[:8]}", tags, own, inputs, code.patch), record
