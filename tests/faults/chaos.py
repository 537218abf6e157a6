"""Kills a random process of the running pipeline, at a random moment, again and again, and compares what comes out.

    python tests/faults/chaos.py [--kills 50] [--seed 0] [--minutes 60] [--stages taca_train@taca ...] [--calm FOLDER]
        [--victims recorder ...]

The smoke pipeline (or the named stages, with all they need) runs in a checkout of its own. Whenever kills have ended `python -m
pipelines repro`, or a stage of it, it is started again, until every stage is done and no kill is left; a pipeline that is done with
kills left starts over in a fresh checkout. Victims are the scheduler, the scheduler while it writes dvc.lock ("recorder"), the warm
processes, runners, workers, their monitors, and Ray's processes. Then everything is compared with an undisturbed run: each entry of
dvc.lock, and in MLflow each point of each curve, each final number and how each run has ended. `--calm` is the checkout of an
undisturbed smoke run of the same code, as `make smoke` leaves it; without a fitting one it is made first. Ends with 0 only if
nothing differs, nothing is lost and nothing is doubled.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
MARK = "PIPELINES_CHAOS"
"""In the environment of every process of one run, whatever session or parent it has."""
PAUSE = (1.0, 24.0)
"""Seconds between a start and a kill, or between two kills: long enough on average for a stage to get further than it was."""
SCHEDULER, RECORDER = "scheduler", "recorder"
WRITTEN = ".dvc.lock.*.tmp"
"""The file that becomes dvc.lock."""
RECORD_SECONDS = 90.0
"""How long a kill waits for the next write of dvc.lock."""
SIGNS = (
    ("worker", "pipelines.engine.worker"),
    ("warm", "pipelines.engine.warm"),
    ("runner", "pipelines.scheduling.stage_runner"),
    (SCHEDULER, "pipelines repro"),
)
"""A kind of process, and what its command line holds."""


@dataclass
class Count:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    rounds: int = 0

    @property
    def spent(self) -> int:
        return sum(self.kills.values())


def sources(root: Path) -> dict[str, bytes]:
    """Files that decide what the pipeline computes, and are the same in every copy of this checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "components", "pipelines", "presets"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    names = [name for name in listed.stdout.decode().split("\0") if name and (root / name).is_file()]
    return {name: (root / name).read_bytes() for name in [*names, "dvc.yaml", "requirements.lock"]}


def checkout(folder: Path) -> Path:
    """A fresh copy of this checkout at smoke sizes, in which nothing has run."""
    from pipelines import presets

    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder)], check=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    presets.apply(["smoke"], folder)
    return folder


def start(root: Path, stages: list[str]) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIPELINES_", "MLFLOW_", "DVC_", "RAY_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with open(root / ".output", "a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", "repro", "--wait", *stages],
            cwd=root,
            env={**kept, "PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1", MARK: str(root)},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )


def family(root: Path) -> list[psutil.Process]:
    """Every living process of the run in `root`, also those whose parent was killed."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(root) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def role(process: psutil.Process) -> str:
    if process.name().startswith("stage-"):  # forked by a warm process, whose command line it has
        return process.name().removeprefix("stage-")
    words = " ".join(process.cmdline())
    kinds = [name for name, sign in SIGNS if sign in words]
    return kinds[0] if kinds else "ray" if "ray" in words.lower() else "other"


def kill_one(
    root: Path, chance: random.Random, scheduler: subprocess.Popen[str], victims: Collection[str] = ()
) -> str | None:
    """kill -9 a process, each kind (of `victims`, if given) as likely as every other. Returns its kind, or None without one."""
    kinds: dict[str, list[psutil.Process]] = {}
    for process in family(root):
        try:
            kinds.setdefault(role(process), []).append(process)
        except psutil.NoSuchProcess:
            continue
    if not kinds:
        return None
    possible = sorted(kind for kind in {*kinds, RECORDER} if not victims or kind in victims)
    if not possible:
        return None
    kind = chance.choice(possible)
    if kind == RECORDER:
        return kind if kill_while_it_writes(root, scheduler) else None
    try:
        chance.choice(kinds[kind]).send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return None
    return kind


def kill_while_it_writes(root: Path, scheduler: subprocess.Popen[str]) -> bool:
    """kill -9 the scheduler in the middle of its next write of dvc.lock. Returns False if it wrote nothing in RECORD_SECONDS."""
    left, deadline = set(root.glob(WRITTEN)), time.monotonic() + RECORD_SECONDS  # by those that were killed before
    while scheduler.poll() is None and time.monotonic() < deadline:
        if set(root.glob(WRITTEN)) - left:
            scheduler.kill()
            return True
        time.sleep(0.002)
    return False


def disturbed(
    root: Path,
    stages: list[str],
    kills: int,
    chance: random.Random,
    count: Count,
    deadline: float,
    victims: Collection[str] = (),
) -> None:
    """Run the pipeline in `root` to its end under at most `kills` kills of `victims`."""
    left = kills
    while True:
        process = start(root, stages)
        count.starts += 1
        next_kill = time.monotonic() + chance.uniform(*PAUSE)
        while process.poll() is None:
            if time.monotonic() > deadline:
                sys.exit(
                    f"out of time; the last words in {root / '.output'}:\n{(root / '.output').read_text()[-2000:]}"
                )
            if left and time.monotonic() > next_kill:
                if kind := kill_one(root, chance, process, victims):
                    left -= 1
                    count.kills[kind] += 1
                    print(f"kill {count.spent}: {kind}", flush=True)
                next_kill = time.monotonic() + chance.uniform(*PAUSE)
            time.sleep(0.1)
        if process.returncode == 0:
            return
        if not left and process.returncode > 0 and count.starts > 3 * kills + 10:
            sys.exit(f"it does not get done by itself:\n{(root / '.output').read_text()[-2000:]}")


def expected_points(root: Path) -> dict[str, list[tuple[str, int, float]]]:
    """By stage: every point of every curve, and every final number, as the finished results on disk have them."""
    from pipelines.scratch.metric_log import MetricLog
    from pipelines.tracking.delivery import metric_name
    from pipelines.tracking.runs import flatten

    points: dict[str, list[tuple[str, int, float]]] = {}
    for file in sorted((root / ".runs").glob("*/DONE.json")):
        done = json.loads(file.read_text())
        log = MetricLog(file.parent / "metrics.jsonl").read()
        curve = [(metric_name(k), line["step"], v) for line in log for k, v in line["metrics"].items()]
        final = [
            (metric_name(k), 0, float(v)) for k, v in flatten(done["metrics"]).items() if isinstance(v, (int, float))
        ]
        points[done["stage"]] = sorted({*curve, *final})
    return points


def tracked_points(root: Path, stage: str, names: set[str]) -> tuple[list[tuple[str, int, float]], list[str]]:
    """What MLflow has of these metrics in the runs of `stage`, and how its runs ended."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("crossmodal-pipelines")
    assert experiment is not None
    name, _, arm = stage.partition("@")
    chosen = f"tags.`pipelines.stage` = '{name}' and tags.`pipelines.arm` = '{arm}'"
    runs = client.search_runs([experiment.experiment_id], chosen)
    points = [
        (key, point.step, point.value)
        for run in runs
        for key in names
        for point in client.get_metric_history(run.info.run_id, key)
    ]
    return sorted(points), [run.info.status for run in runs]


def recorded(root: Path) -> dict[str, dict[str, list[object]]]:
    """Entries of dvc.lock by stage."""
    return dict(yaml.safe_load((root / "dvc.lock").read_text())["stages"])


def pipeline_endings(root: Path) -> list[str]:
    """How the pipeline's own runs in MLflow have ended."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("crossmodal-pipelines")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.level = 'pipeline'")
    return [run.info.status for run in runs]


def compare(root: Path, calm: Path) -> list[str]:
    """What differs between a disturbed run and the undisturbed one, a line each."""
    found, there = recorded(root), recorded(calm)
    problems = [f"{stage}: its entry in dvc.lock differs" for stage in found if there.get(stage) != found[stage]]
    if (endings := pipeline_endings(root)) != ["FINISHED"]:
        problems.append(f"the pipeline: runs ended as {endings}")
    expected = expected_points(calm)
    for stage in found:
        points, endings = tracked_points(root, stage, {name for name, _, _ in expected[stage]})
        wanted, got = Counter(expected[stage]), Counter(points)
        problems += [f"{stage}: {name} at step {step} lost" for name, step, _ in wanted - got]
        problems += [f"{stage}: {name} at step {step} doubled, or another value" for name, step, _ in got - wanted]
        if endings != ["FINISHED"]:
            problems.append(f"{stage}: runs ended as {endings}")
    return problems


def undisturbed(given: Path, folder: Path, stages: list[str]) -> Path:
    """A checkout in which the pipeline has run without a kill: the given one if it fits, else a new one."""
    if (given / "dvc.lock").is_file():
        fresh, done = checkout(folder / "fresh"), recorded(given)
        same = (given / "params.yaml").read_bytes() == (fresh / "params.yaml").read_bytes()
        if same and sources(given) == sources(ROOT) and all(stage in done for stage in stages):
            return given
        print(f"{given} is of other code, or not complete: running undisturbed once", flush=True)
    calm = checkout(folder / "calm")
    if start(calm, stages).wait() != 0:
        sys.exit(f"the undisturbed run failed:\n{(calm / '.output').read_text()[-2000:]}")
    return calm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--round", type=int, default=15, help="kills at most before a fresh start (default 15)")
    parser.add_argument("--seed", type=int, default=0, help="of victims and moments")
    parser.add_argument("--minutes", type=float, default=60, help="gives up after so many (default 60)")
    parser.add_argument("--stages", nargs="*", default=[], help="default: all")
    parser.add_argument(
        "--victims", nargs="*", default=[], help="kinds of process to kill, such as recorder (default: all)"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".runs" / "chaos")
    parser.add_argument("--calm", type=Path, default=ROOT / ".runs" / "smoke-clone")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    chance = random.Random(options.seed)
    calm = undisturbed(options.calm, options.folder, options.stages)
    count, problems = Count(), []
    stages: dict[str, dict[str, list[object]]] = {}
    while count.spent < options.kills:
        count.rounds += 1
        # A path of its own: an MLflow client keeps the first database that it has opened at an address.
        root = checkout(options.folder / f"round-{count.rounds}")
        try:
            left = min(options.round, options.kills - count.spent)
            disturbed(root, options.stages, left, chance, count, deadline, options.victims)
            found = compare(root, calm)
        finally:
            for process in family(root):
                process.kill()
        stages = recorded(root)
        if found:
            print(f"in {root}, which is kept:", *found, sep="\n", flush=True)
        else:
            shutil.rmtree(root)
        problems += found
    outputs = sum(len(stages[stage]["outs"]) for stage in stages)
    numbers = sum(len(points) for stage, points in expected_points(calm).items() if stage in stages)
    by_kind = ", ".join(f"{kind} {number}" for kind, number in sorted(count.kills.items()))
    print(
        f"{count.spent} kills survived ({by_kind}) in {count.starts} starts of {count.rounds} pipeline(s); "
        f"of {outputs} outputs and {numbers} tracked points each time: {len(problems)} differ, are lost or doubled"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
