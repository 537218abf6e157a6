"""The process of one trial: `python -m pipelines.sweeps.trial`, started by the function that Ray Tune calls.

It reads one JSON line, the `TrialTask`, and runs the trial's stages as `dvc repro` would, in its own workspace with the shared
scratch root: a stage that is finished is put in place, one that another trial computes now is waited for. It writes JSON lines to
its standard output: {"step", "value", "seconds"} while the watched stage trains, and at the end {"ended": {...}} or {"failed":
reason, "status": exit code, "traceback": of a bug}; stages print to `log.txt`. When its standard input closes (the trial was
stopped early, or the sweep was killed) it interrupts its stage as Ctrl-C does, and the trial can be resumed from the checkpoint.
"""

import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.files import write_atomically
from pipelines.engine.parent import end_with_parent
from pipelines.engine.runner import StageOutcome, run_stage, scratch_for
from pipelines.errors import OTHER, exit_code, is_expected
from pipelines.records.manifests import find_by_fingerprint
from pipelines.schema.reading import to_yaml
from pipelines.scratch.folder import Scratch, folder_name, put_in_place
from pipelines.scratch.manifest import Manifest
from pipelines.scratch.metric_log import MetricFollower, MetricLog
from pipelines.sweeps.rounds import KEPT, resume_from_round, train_round
from pipelines.tracking.runs import flatten
from pipelines.workspace import Workspace

LOOK_SECONDS = 0.3
"""Between two reads of the watched stage's metrics."""
LONGEST_TRACEBACK = 8000


@dataclass(frozen=True)
class TrialTask:
    """The task of a trial's process, as JSON values."""

    folder: str
    home: str
    document: dict[str, Any]
    """params.yaml with the trial's values."""
    seeds: list[int]
    upstream: list[str]
    repeated: list[str]
    """Stages; the repeated ones run once per seed, the others with the document's seed."""
    shared: str
    """The workspace of the shared stages, and the outputs to take from it."""
    linked: list[str]
    given: dict[str, str]
    """Input that no stage writes -> its location."""
    objectives: list[dict[str, Any]]
    watch: dict[str, Any] | None
    """{"stage", "metric", "full", "until"}: the metric that the scheduler watches, and the step at which the round ends."""
    origin: str | None
    """In a population, the checkpoints to resume from, and the scratch root of rounds."""
    members: str
    run: str
    """The trial's run in MLflow."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main() -> int:
    task = TrialTask(**json.loads(sys.stdin.readline()))
    write_event = _redirect_output(Path(task.folder) / "log.txt")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    begun = time.monotonic()

    def report(step: int, value: float) -> None:
        write_event({"step": step, "value": value, "seconds": time.monotonic() - begun})

    try:
        write_event({"ended": run_trial(task, report)})
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            return exit_code(error)
        if not is_expected(error):
            traceback.print_exc()
        reason = str(error) or type(error).__name__
        log = Path(task.folder) / "log.txt"
        status = exit_code(error)
        failed = {"failed": _with_cause(" ".join(reason.split()), log), "status": status}
        write_event({**failed, "traceback": _last_traceback(log) if status == OTHER else ""})
        return status
    return 0


def run_trial(task: TrialTask, report: Callable[[int, float], None]) -> dict[str, Any]:
    """Run every stage for every seed. Returns {"objectives": one list per objective, "stages", "reports", "seconds"}.

    `report` is called with the watched metric of the first seed, but not for its last step, which is in the returned "reports". A
    trial that ends with a round of its population has no objectives.
    """
    begun = time.monotonic()
    reports: list[tuple[int, float]] = []
    stages: list[dict[str, Any]] = []
    objectives: list[list[float]] = [[] for _ in task.objectives]
    for place, seed in enumerate(task.seeds):
        workspace = _workspace(task, seed)
        outcomes: dict[str, StageOutcome] = {}
        for address in (*task.upstream, *task.repeated):
            _write_params(task, workspace, seed if address in task.repeated else None)
            watch = task.watch if task.watch and place == 0 and task.watch["stage"] == address else None
            started = time.monotonic()
            if watch and watch["until"]:
                reports = _round(task, watch, workspace, report)
                return {"objectives": [], "stages": stages, "reports": reports, "seconds": time.monotonic() - begun}
            if watch and task.origin:
                resume_from_round(Path(task.origin), scratch_for(address, workspace))
            with _watching(watch, address, workspace, report):
                outcomes[address] = run_stage(address, workspace, task.run)
            if watch:
                reports = _watched(address, outcomes[address], workspace, watch["metric"])
            stages.append(_stage_facts(address, seed, outcomes[address], workspace, time.monotonic() - started))
        for values, objective in zip(objectives, task.objectives, strict=True):
            values.append(measured(objective, outcomes, workspace))
    return {"objectives": objectives, "stages": stages, "reports": reports, "seconds": time.monotonic() - begun}


def _round(
    task: TrialTask, watch: Mapping[str, Any], workspace: Workspace, report: Callable[[int, float], None]
) -> list[tuple[int, float]]:
    """Train the watched stage to the end of its population's round. Returns what it reported until then."""
    apart = Workspace(workspace.root, Path(task.members))
    origin, kept = Path(task.origin) if task.origin else None, Path(task.folder) / KEPT
    with _watching(watch, watch["stage"], apart, report):
        scratch = train_round(watch["stage"], apart, watch["metric"], watch["until"], origin, kept, task.run)
    reported = _reported(MetricLog(scratch.metrics_file), watch["metric"])
    return [(step, value) for step, value in reported if step <= watch["until"]]


def measured(objective: Mapping[str, Any], outcomes: Mapping[str, StageOutcome], workspace: Workspace) -> float:
    """Return the value of an objective: a metric of the stage's result, else of its curve, else of its cost.

    Raises DataError, naming existing metrics, when there is no such metric, and for a value that is not finite.
    """
    address, metric = objective["stage"], objective["metric"]
    value = _found(objective, outcomes[address], workspace)
    if not math.isfinite(value):
        raise DataError(f"{address}: {metric} is {value}, which cannot be compared with that of other trials")
    return value


def _found(objective: Mapping[str, Any], outcome: StageOutcome, workspace: Workspace) -> float:
    address, metric = objective["stage"], objective["metric"]
    final = flatten(outcome.metrics)
    if isinstance(final.get(metric), int | float):
        return float(final[metric])
    scratch = scratch_of(address, outcome.fingerprint, workspace)
    curve = [value for _, value in _reported(MetricLog(scratch.metrics_file), metric)]
    if curve and objective["pick"] == "best":
        best = max if objective["mode"] == "max" else min
        return best(filter(math.isfinite, curve), default=curve[-1])
    if curve:
        return curve[-1]
    cost = _manifest(address, outcome, workspace).cost
    if metric in cost:
        return float(cost[metric])
    some = [*sorted(key for key, value in final.items() if isinstance(value, int | float))[:12], *sorted(cost)]
    raise DataError(f"{address} has no metric {metric!r}; it has {', '.join(some) or 'none'}")


def scratch_of(address: str, identity: str, workspace: Workspace) -> Scratch:
    """Return the scratch folder of a stage with this fingerprint."""
    return Scratch(workspace.home / folder_name(address, identity))


def _workspace(task: TrialTask, seed: int) -> Workspace:
    """Make the trial's workspace for one seed, with the inputs that the trial does not make itself."""
    root = Path(task.folder) / f"seed-{seed}"
    link_inputs(root, task.given)
    for path in task.linked:
        put_in_place(Path(task.shared) / path, root / path)
    return Workspace(root, Path(task.home))


def link_inputs(root: Path, sources: Mapping[str, str | Path]) -> None:
    """Link the inputs of a workspace (by their path below `root`) to where they are."""
    for path, source in sources.items():
        link = root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(source)


def _write_params(task: TrialTask, workspace: Workspace, seed: int | None) -> None:
    document = task.document if seed is None else {**task.document, "seed": seed}
    write_atomically(workspace.path("params.yaml"), to_yaml(document))


def _stage_facts(
    address: str, seed: int, outcome: StageOutcome, workspace: Workspace, seconds: float
) -> dict[str, Any]:
    return {
        "stage": address,
        "seed": seed,
        "fingerprint": outcome.fingerprint,
        "run": _manifest(address, outcome, workspace).run,
        "restored": outcome.restored,
        "seconds": seconds,
    }


def _manifest(address: str, outcome: StageOutcome, workspace: Workspace) -> Manifest:
    found = find_by_fingerprint(address, outcome.fingerprint, workspace.home)
    if found is None:
        raise DataError(f"{address}: the manifest of {outcome.fingerprint[:8]} is gone from scratch: run it again")
    return found


def _reported(log: MetricLog | MetricFollower, metric: str) -> list[tuple[int, float]]:
    """Return (step, value) of each report of a metric."""
    return [(line["step"], float(line["metrics"][metric])) for line in log.read() if metric in line["metrics"]]


def _watched(address: str, outcome: StageOutcome, workspace: Workspace, metric: str) -> list[tuple[int, float]]:
    """Return the reports of the watched metric. Raises DataError, naming what was reported, when there are none."""
    log = MetricLog(scratch_of(address, outcome.fingerprint, workspace).metrics_file)
    if reports := _reported(log, metric):
        return reports
    names = sorted({name for line in log.read() for name in line["metrics"]})
    raise DataError(
        f"{address} has not reported {metric!r}, which the scheduler watches; it has {', '.join(names) or 'none'}"
    )


@contextmanager
def _watching(
    watch: Mapping[str, Any] | None, address: str, workspace: Workspace, report: Callable[[int, float], None]
) -> Iterator[None]:
    """Call `report` with the watched metric while the stage runs. Steps reported before a kill are reported again."""
    if watch is None:
        yield
        return
    log = MetricFollower(scratch_for(address, workspace).metrics_file)
    end = watch["until"] or watch["full"]
    over = threading.Event()

    def look() -> None:
        reported = 0
        while True:
            last = over.wait(LOOK_SECONDS)
            for step, value in _reported(log, watch["metric"]):
                if reported < step < end:
                    reported = step
                    report(step, value)
            if last:
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _redirect_output(log: Path) -> Callable[[dict[str, Any]], None]:
    """Redirect everything that this process and its stages print to `log`; return a function that writes events to stdout."""
    log.parent.mkdir(parents=True, exist_ok=True)
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    lock = threading.Lock()

    def write_event(event: dict[str, Any]) -> None:
        with lock:
            stdout.write(json.dumps(event) + "\n")
            stdout.flush()

    return write_event


def _last_traceback(log: Path) -> str:
    """Return the last traceback in the log of the stages, "" without one."""
    _, begin, rest = log.read_text(encoding="utf-8", errors="replace").rpartition("Traceback (most recent call last)")
    return f"{begin}{rest}"[:LONGEST_TRACEBACK].rstrip() if begin else ""


def _with_cause(reason: str, log: Path) -> str:
    """Return `reason` with the last error line in the log of the stages."""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if "error:" in line.lower()]
    return f"{reason}: {lines[-1].split('rror: ', 1)[-1][:300]}" if lines and lines[-1] not in reason else reason


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skips slow clean-up of libraries; everything that matters is on disk
