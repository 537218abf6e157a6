"""The overhead of the system for a stage: seconds beyond the bare function, by layer, and as a fraction of the default pipeline.

    python benchmarks/orchestration.py [--rounds 3] [--json FILE]

One training stage (the probe, at a few steps) runs in a copy of this checkout in four ways, each with one more layer: the function
alone; in a process of its own, with its imports; under the runner, with fingerprint, MLflow and provenance; under `dvc repro`. The
differences are the overhead of each layer. Then under the scheduler of `python -m pipelines repro`, whose runners and workers are
forked from warm processes: all from the question what the stage needs to its entry in dvc.lock. Seconds are wall time, the median
of the rounds; processor seconds, which other programs affect less, are beside them. Then: restoring a finished stage, both commands
with nothing to do, a checkpoint by size, and the logging of a step. The fraction uses the durations in mlflow.db, where the default
pipeline has run. Takes about three minutes.

`orchestration_pipeline.py` runs the whole pipeline one stage after the other and scheduled, `orchestration_cluster.py` the graph on
a Ray cluster of four nodes.
"""

import argparse
import json
import os
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.terminal.console import TableConsole

ROOT = Path(__file__).resolve().parent.parent
STEPS = 5
SCHEDULER = "under the scheduler"
TINY = {
    "prepare": {"identities": {"train": 24, "val": 8, "test": 8}},
    "probe": {
        "source": None,
        "sha256": None,
        "training": {"steps": STEPS, "batch": 8, "report_every": 5, "checkpoint_every": 5},
    },
    "compute": {"threads": 1, "device": "cpu"},
}
BARE = """
import sys, time
from pathlib import Path
from pipelines import graph, params
from pipelines.engine import execution
from pipelines.engine.context import StageContext
from pipelines.scratch.folder import Scratch
import torch
root, folder = Path(sys.argv[1]), Path(sys.argv[2])
run = graph.find("probe")
function = execution.stage_function(run)
chosen = params.load(root / "params.yaml")
torch.set_num_threads(chosen.compute.threads)
scratch = Scratch(folder)
scratch.begin()
context = StageContext(scratch, seed=chosen.seed, arm=None, device=torch.device("cpu"))
outputs = {name: scratch.writing / path for name, path in run.outputs.items()}
for path in outputs.values():
    path.parent.mkdir(parents=True, exist_ok=True)
start, used = time.perf_counter(), time.process_time()
function(chosen, {name: root / path for name, path in run.inputs.items()}, outputs, context)
print(time.perf_counter() - start, time.process_time() - used)
"""
PARTS = """
import sys, time
from pathlib import Path
def took(name, action):
    start = time.perf_counter(); result = action(); print(name, time.perf_counter() - start, sep="\\t"); return result
root = Path(sys.argv[1])
took("import MLflow", lambda: __import__("mlflow.tracking"))
took("import the runner", lambda: __import__("pipelines.engine.runner"))
from pipelines.engine.attempt import Attempt
from pipelines.tracking import runs as tracking
from pipelines.workspace import Workspace
workspace = Workspace.at(root)
attempt = took("parameters and fingerprint", lambda: Attempt.at("probe", workspace))
took("the same, with the sources read", lambda: Attempt.at("probe", workspace))
tracker = took("connect to the store", lambda: tracking.connect(workspace))
facts, _ = took("provenance", attempt.facts)
folder = workspace.home / "parts"; folder.mkdir(exist_ok=True)
tracked = took("open the run", lambda: tracker.open(folder, facts, "parent"))
def close():
    tracked.end("FINISHED", {"number": 1.0}); tracked.close()
took("close the run", close)
took("check that nothing has changed", attempt.require_unchanged)
"""
SCHEDULED = """
import json, os, shutil, sys, time
from pathlib import Path
from types import SimpleNamespace
from pipelines import graph
from pipelines.params import load
from pipelines.scheduling.dvc_repo import DvcRepo
from pipelines.scheduling.places import LocalPlaces
from pipelines.scheduling.plan import Plan
from pipelines.scheduling.runners import Runners
from pipelines.scheduling.scheduler import run_plan
from pipelines.scheduling.stop_signals import StopSignals
from pipelines.tracking.pipeline_run import pipeline_execution
from pipelines.workspace import Workspace
root, rounds = Path(sys.argv[1]), int(sys.argv[2])
os.chdir(root)
workspace, params, plan = Workspace.at(root), load(root / "params.yaml"), Plan([graph.find("probe")])
repository = DvcRepo(workspace, ["probe"], single_item=True)
silent = SimpleNamespace(**{name: lambda *given: None for name in ("started", "ended", "waiting", "say")})
with (
    StopSignals() as signals,
    pipeline_execution(workspace) as execution,
    Runners(workspace, params.compute.threads, lambda: execution.id) as runners,
):
    times = []
    for _ in range(rounds + 1):
        for folder in workspace.home.glob("probe-*"):
            shutil.rmtree(folder)
        start = time.perf_counter()
        summary = run_plan(plan, repository, LocalPlaces(params), runners, silent, signals, force=True)
        times.append(time.perf_counter() - start)
        assert summary.exit_code == 0, summary
print(json.dumps(times[1:]))  # the first waits for the warm processes
"""


@dataclass(frozen=True)
class Took:
    """Wall and processor seconds of a command and its children, and its output."""

    wall: float
    cpu: float
    output: str = ""


def copy_of_the_checkout(folder: Path, changes: Mapping[str, Any]) -> Path:
    """The files of this checkout with these changes of params.yaml, committed, without results."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    author = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "--all"], [*author, "commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    from pipelines import presets

    presets.edit(folder / "params.yaml", changes)
    return folder


def run(root: Path, *command: str, **extra: str) -> Took:
    """Run a command of this environment in `root`; end the benchmark when it fails."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIPELINES_", "MLFLOW_", "DVC_", "RAY_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **kept,
        "PATH": path,
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(root),
        **extra,
    }
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return Took(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout)


def median_of(rounds: int, action: Callable[[], Took]) -> Took:
    """The medians of the rounds, and the output of one of them."""
    found = [action() for _ in range(rounds)]
    wall, cpu = (statistics.median(getattr(took, name) for took in found) for name in ("wall", "cpu"))
    return Took(wall, cpu, found[-1].output)


def layers(root: Path, rounds: int) -> dict[str, Took]:
    """Time the stage with one more layer each time; no finished result is reused."""

    def forget() -> None:
        for folder in (root / ".runs").glob("probe-*"):
            shutil.rmtree(folder)

    def bare() -> Took:
        with tempfile.TemporaryDirectory() as folder:
            return run(root, "-c", BARE, str(root), folder)

    def runner() -> Took:
        forget()
        return run(root, "-m", "pipelines", "run", "probe")

    def dvc() -> Took:
        forget()
        return run(root, "-m", "dvc", "repro", "--single-item", "--force", "probe")

    def function() -> Took:
        wall, cpu = map(float, bare().output.split()[-2:])
        return Took(wall, cpu)

    def again(*command: str) -> Took:
        return median_of(rounds, lambda: run(root, "-m", *command))

    cold = {
        "the function": median_of(rounds, function),
        "in a process": median_of(rounds, bare),
        "under the runner": median_of(rounds, runner),
        "under dvc repro": median_of(rounds, dvc),
    }
    scheduled = run(root, "-c", SCHEDULED, str(root), str(rounds))
    return {
        **cold,
        SCHEDULER: Took(statistics.median(json.loads(scheduled.output.splitlines()[-1])), scheduled.cpu / (rounds + 1)),
        "found finished, under dvc repro": again("dvc", "repro", "--single-item", "--force", "probe"),
        "dvc repro, nothing to do": again("dvc", "repro", "probe"),
        "pipelines repro, nothing to do": again("pipelines", "repro", "probe"),
    }


def checkpoints(folder: Path, rounds: int) -> list[dict[str, float]]:
    """Milliseconds for which a save blocks training, by size."""
    import torch

    from components.training.checkpoint import CheckpointStore

    rows = []
    for mebibytes in (1, 10, 50):
        state = {"weights": {str(i): torch.randn(mebibytes * 2**18 // 16) for i in range(16)}}
        store = CheckpointStore(folder / str(mebibytes))
        times = []
        for step in range(2 * rounds):
            start = time.perf_counter()
            store.save(state, step)
            times.append(1000 * (time.perf_counter() - start))
        rows.append({"mebibytes": mebibytes, "milliseconds": min(times), "median": statistics.median(times)})
        shutil.rmtree(store.folder)
    return rows


def logging_of_a_step(folder: Path) -> float:
    """Microseconds of a report in the training process. The runner delivers it to MLflow in parallel."""
    from pipelines.scratch.metric_log import MetricLog

    log = MetricLog(folder / "metrics.jsonl")
    metrics = {f"train/{i}": i / 7 for i in range(6)}
    start = time.perf_counter()
    for step in range(1000):
        log.append("main", step, metrics)
    return 1e6 * (time.perf_counter() - start) / 1000


def default_pipeline() -> dict[str, float]:
    """Seconds of the newest finished run of each stage in mlflow.db, by address; empty without the file."""
    store = ROOT / "mlflow.db"
    if not store.is_file():
        return {}
    query = (
        "select runs.name, latest_metrics.value from runs join latest_metrics using (run_uuid) "
        "where latest_metrics.key = 'cost/seconds' and runs.status = 'FINISHED' and runs.name like '%/%' "
        "order by runs.start_time"
    )
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
        return {name.rsplit("/", 1)[0]: seconds for name, seconds in connection.execute(query)}


def show(found: dict[str, Took], parts: list[tuple[str, float]], console: TableConsole) -> float:
    """Print the tables of a stage; return the seconds that the system adds."""
    table = Table(title=f"one training stage ({STEPS} steps), seconds", title_justify="left")
    for heading in ("", "wall", "adds", "processor"):
        table.add_column(heading, justify="right" if heading else "left")
    before = None
    for name, took in found.items():
        layer = name in ("in a process", "under the runner", "under dvc repro")
        adds = f"{took.wall - before:+.2f}" if layer and before is not None else ""
        table.add_row(name, f"{took.wall:.2f}", adds, f"{took.cpu:.2f}")
        before = took.wall
    console.print(table)
    inside = Table(
        title="in the runner's process, one after the other (beside the worker's imports)", title_justify="left"
    )
    inside.add_column("part")
    inside.add_column("seconds", justify="right")
    for name, seconds in parts:
        inside.add_row(name, f"{seconds:.3f}")
    console.print(inside)
    return found[SCHEDULER].wall - found["the function"].wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    console = TableConsole()
    with tempfile.TemporaryDirectory(prefix="orchestration-") as temporary:
        root = copy_of_the_checkout(Path(temporary) / "checkout", TINY)
        run(root, "-m", "dvc", "repro", "prepare")
        run(root, "-m", "dvc", "repro", "probe")  # compiles bytecode, fetches files
        found = layers(root, options.rounds)
        output = median_of(options.rounds, lambda: run(root, "-c", PARTS, str(root))).output
        parts = [(line.split("\t")[0], float(line.split("\t")[1])) for line in output.splitlines() if "\t" in line]
        saves, report = checkpoints(Path(temporary), options.rounds), logging_of_a_step(Path(temporary))
    adds = show(found, parts, console)
    sizes = ", ".join(f"{row['mebibytes']} MiB {row['milliseconds']:.0f} ms" for row in saves)
    console.print(f"checkpoint, training is blocked: {sizes}; a report of 6 metrics: {report:.0f} us")
    seconds = default_pipeline()
    share: dict[str, Any] = {}
    if seconds:
        inside = found["under dvc repro"].wall - found["under the runner"].wall  # not included in cost/seconds
        total = sum(seconds.values()) + inside * len(seconds)
        share = {
            "stages": len(seconds),
            "total": total,
            "added": adds * len(seconds),
            "share": adds * len(seconds) / total,
        }
        console.print(
            f"the system adds {adds:.1f} s to a stage; {len(seconds)} stages of the default pipeline took {total:.0f} s: "
            f"{100 * share['share']:.0f} %"
        )
    if options.json:
        numbers = {name: {"wall": took.wall, "processor": took.cpu} for name, took in found.items()}
        everything = {
            "layers": numbers,
            "parts": dict(parts),
            "checkpoints": saves,
            "report_us": report,
            "default": share,
        }
        options.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
