"""The life of a stage.

    parameters -> fingerprint -> finished before? put the outputs in place and stop
                              -> open the MLflow run -> work, in a process of its own -> outputs final -> in place

The work is done by `pipelines.worker` in a child process, so that this one can own the run's status whatever kills the work. While
the child imports torch, this process imports MLflow; the child begins only when the tracking server has answered.
"""

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from components.errors import DataError
from pipelines import graph, tracking
from pipelines.closure import ROOT
from pipelines.errors import INTERRUPTED, InfrastructureError, StageFailedError
from pipelines.fingerprint import digest, fingerprint, tree_digests
from pipelines.graph import StageRun
from pipelines.params import Parameters, load
from pipelines.reported import MetricLog
from pipelines.scratch import Scratch, put_in_place
from pipelines.tracking import FAILED, FINISHED, KILLED, RunFacts, TrackedRun, flatten
from pipelines.worker import Work
from pipelines.workspace import Workspace, git_state

POLL_SECONDS = 0.2
DELIVERY_SECONDS = 2.0


@dataclass(frozen=True)
class Outcome:
    """How a stage ended well."""

    fingerprint: str
    restored: bool
    metrics: dict[str, Any]


def run_stage(address: str, workspace: Workspace) -> Outcome:
    """Bring the outputs of a stage (`name` or `name@arm`) up to date in `workspace`.

    Raises ParameterError, DataError, InfrastructureError, StageFailedError (the work failed and said why) or KeyboardInterrupt.
    """
    run = graph.find(address)
    params = load(workspace.path("params.yaml"))
    own = params.only(run.stage.reads)
    inputs = {name: workspace.path(path) for name, path in run.inputs.items()}
    _require(run, inputs)
    identity = fingerprint(run, own, inputs, params.compute.threads)
    scratch = Scratch(workspace.home / f"{run.address.replace('@', '-')}-{identity[:16]}")
    with scratch.lock() as held:
        done = scratch.done()
        restored = done is not None
        if done is None:
            done = _work(run, params, scratch, workspace, identity, held)
        else:
            print(f"{run.address}: found finished in {scratch.folder.name}", flush=True)
        for path in done["outputs"]:
            put_in_place(scratch.outputs / path, workspace.path(path))
    return Outcome(identity, restored, done["metrics"])


def _require(run: StageRun, inputs: dict[str, Path]) -> None:
    missing = [run.inputs[name] for name, path in inputs.items() if not path.exists()]
    if missing:
        raise DataError(
            f"{run.address}: {', '.join(missing)} not there: run `dvc repro {run.address}`, or `dvc pull` it"
        )


def _work(
    run: StageRun, params: Parameters, scratch: Scratch, workspace: Workspace, identity: str, held: int
) -> dict[str, Any]:
    """One attempt, tracked. Returns the DONE manifest."""
    scratch.begin()
    own = params.only(run.stage.reads)
    started = time.time()
    with _interruptible(), _worker(run, params, scratch, workspace, held) as process:
        tracker = tracking.connect(workspace)
        tracked = tracker.open(scratch.folder, _facts(run, own, workspace, identity, params))
        try:
            _send_go(process)
            code = _watch(process, tracked)
            if code < 0:
                name = signal.Signals(-code).name
                raise InfrastructureError(
                    f"{run.address}: its process was ended by {name}: run again, to go on from there"
                )
            if code > 0:
                raise StageFailedError(f"{run.address} failed", code)
            metrics = json.loads(scratch.result.read_text())
            _write_tables(run, scratch, metrics)
            done = scratch.finish(
                run.all_outputs,
                {"fingerprint": identity, "stage": run.address, "metrics": metrics, "run": tracked.run_id},
            )
        except BaseException as error:
            killed = isinstance(error, KeyboardInterrupt) or getattr(error, "code", None) == INTERRUPTED
            _close(tracked, KILLED if killed else FAILED, {}, None)
            if killed:
                raise KeyboardInterrupt from error
            raise
        cost = _cost(time.time() - started)
        _close(tracked, FINISHED, {**flatten(metrics), **cost}, scratch.figures)
    return done


def _write_tables(run: StageRun, scratch: Scratch, metrics: dict[str, Any]) -> None:
    """Metrics and curves as files: outputs like any other."""
    tables = {run.metrics: json.dumps(metrics, indent=1, sort_keys=True) + "\n"}
    if run.curves:
        tables[run.curves] = MetricLog(scratch.reported).table()
    for path, text in tables.items():
        file = scratch.writing / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


@contextmanager
def _worker(
    run: StageRun, params: Parameters, scratch: Scratch, workspace: Workspace, held: int
) -> Iterator["subprocess.Popen[str]"]:
    """The child process, told what to do but not yet to begin; ended on the way out whatever happens.

    It runs the code that was fingerprinted (`ROOT`), and holds the scratch folder (`held`) until it is gone itself.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.worker"], stdin=subprocess.PIPE, text=True, cwd=ROOT, pass_fds=(held,)
    )
    assert process.stdin is not None
    work = Work(
        run.address,
        str(workspace.root),
        str(scratch.folder),
        params.only(run.stage.reads),
        params.compute.model_dump(mode="json"),
    )
    try:
        process.stdin.write(work.to_json() + "\n")
        process.stdin.flush()
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _send_go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    try:
        process.stdin.write("go\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it failed while loading: its exit code, read next, says how


def _watch(process: "subprocess.Popen[str]", tracked: TrackedRun) -> int:
    """Wait for the work, delivering metrics meanwhile. Returns its exit code (negative for a signal)."""
    delivered = time.monotonic()
    while (code := process.poll()) is None:
        time.sleep(POLL_SECONDS)
        if time.monotonic() - delivered > DELIVERY_SECONDS:
            tracked.deliver()
            delivered = time.monotonic()
    return code


def _close(tracked: TrackedRun, status: str, metrics: dict[str, float], figures: Path | None) -> None:
    """Give the run its end. A server that is away now costs a warning, not the result."""
    numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, (int, float))}
    try:
        tracked.deliver(patience=20)
        tracked.finish(status, numbers, figures)
    except Exception as error:  # whatever a server answers: the outputs are on disk, and worth more than the run's end
        reason = str(error)[:160]
        print(f"warning: run {tracked.run_id} could not be closed as {status} ({reason})", file=sys.stderr, flush=True)


def _facts(run: StageRun, own: dict[str, Any], workspace: Workspace, identity: str, params: Parameters) -> RunFacts:
    tags = {
        "pipelines.stage": run.stage.name,
        "pipelines.arm": run.arm or "",
        "pipelines.fingerprint": identity,
        "pipelines.seed": str(params.seed),
        "pipelines.workers": str(params.compute.workers),
        "pipelines.threads": str(params.compute.threads),
        "pipelines.device": params.compute.device,
        **git_state(workspace.root),
    }
    inputs = {name: (path, digest(tree_digests(workspace.path(path)))) for name, path in run.inputs.items()}
    return RunFacts(f"{run.address}/{identity[:8]}", tags, own, inputs)


def _cost(seconds: float) -> dict[str, float]:
    """Of this process's child: wall and CPU seconds, and the most memory it held."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return {
        "cost/seconds": seconds,
        "cost/cpu_seconds": used.ru_utime + used.ru_stime,
        "cost/peak_memory_mb": used.ru_maxrss * unit / 2**20,
    }


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the stage as Ctrl-C does: the child stopped, the run marked, exit code 130."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
