"""Stages on a busy machine: how much slower the default's longest ones are beside a process that computes without a pause.

    python benchmarks/contention.py [--stages A B ...] [--threads 1 2] [--spinning] [--json FILE]

The longest stages, by the cost in the newest manifests, run on the outputs and parameters of this checkout (`make repro` first),
each in a process that halts between two steps. It takes slices of steps, alone and beside a process of the same priority that
computes without a pause, in turns; medians of five are compared. All are bound to two cores, or to as many as a stage has threads.
A stage that is more than 2.2 times slower makes the exit code 1.

`--threads 1 2` also compares two stages of one thread at once with one after the other of two threads, from which the default of
`compute.threads` is chosen. `--spinning` also measures OpenMP's own way of waiting, and checks that the results are the same. Five
minutes on idle cores with `--threads 1 2`; numbers mean something only there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table
from sliced_stage import SlicedStage

from components.errors import DataError, ParameterError
from pipelines import graph, params
from pipelines.errors import report_error
from pipelines.graph import StageRun
from pipelines.scheduling.durations import Durations
from pipelines.terminal.console import TableConsole
from pipelines.threads.cores import usable_cores
from pipelines.workspace import Workspace, workspace_root

LONGEST, ROUNDS, SLICE_SECONDS, MAX_RATIO = 3, 5, 1.0, 2.2
SPINNING = "waiting as OpenMP does"
UNTIMED = 3
"""Steps of each process before the first slice."""


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds of the seconds of a slice, alone and beside a busy process; and a digest of what was computed."""

    steps: int
    alone: float
    beside: float
    digest: str

    @property
    def ratio(self) -> float:
        return self.beside / self.alone


@contextmanager
def busy_process() -> Iterator[None]:
    """A process of the same priority that computes without a pause."""
    process = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


def measure(
    root: Path, run: StageRun, threads: int, *, steps: int = 0, copies: int = 1, spinning: bool = False
) -> Measured:
    """Time slices of `steps` steps (0: as many as take SLICE_SECONDS) of `copies` processes at once."""
    stages = [SlicedStage(root, run, threads, spinning=spinning) for _ in range(copies)]
    try:
        for stage in stages:
            stage.wait()

        def take(number: int) -> float:
            start = time.perf_counter()
            for stage in stages:
                stage.begin(number)
            for stage in stages:
                stage.wait()
            return time.perf_counter() - start

        take(UNTIMED)
        guess = take(UNTIMED) / UNTIMED
        steps = steps or max(1, round(SLICE_SECONDS / guess))
        alone, beside = [], []
        for _ in range(ROUNDS):
            alone.append(take(steps))
            with busy_process():
                beside.append(take(steps))
        for stage in stages:
            stage.begin(0)
        digests = {stage.wait() for stage in stages}
    finally:
        for stage in stages:
            stage.kill()
    if len(digests) > 1:
        raise RuntimeError(f"{run.address}: {copies} processes of {threads} thread(s) computed different weights")
    return Measured(steps, statistics.median(alone), statistics.median(beside), digests.pop())


def longest(workspace: Workspace) -> list[StageRun]:
    """Return the stage runs that took longest, one arm of each stage. Raises DataError where the pipeline has not run."""
    known = Durations(workspace.home, params.load(workspace.path("params.yaml")))
    finished = [
        (seconds, run) for run in graph.all_runs() if run.stage.heavy and (seconds := known.known(run)) is not None
    ]
    if not finished:
        raise DataError(f"{workspace.home}: no stage has finished yet: run `make repro`, or name --stages")
    found: dict[str, StageRun] = {}
    for _, run in sorted(finished, key=lambda one: one[0], reverse=True):
        found.setdefault(run.stage.name, run)
    return list(found.values())[:LONGEST]


def show(rows: Mapping[str, Mapping[str, Measured]]) -> float:
    """Print a row per stage and number of threads; return the largest ratio, but for threads that wait as OpenMP does."""
    table = Table(title="Steps per second", title_justify="left")
    for column in ("stage", "threads", "steps per slice", "alone", "beside one busy process", "times slower"):
        table.add_column(column, justify="left" if column in ("stage", "threads") else "right")
    for address, ways in rows.items():
        for way, found in ways.items():
            rates = (f"{found.steps / seconds:.2f}" for seconds in (found.alone, found.beside))
            table.add_row(address, way, str(found.steps), *rates, f"{found.ratio:.2f}")
    TableConsole().print(table)
    return max(found.ratio for ways in rows.values() for way, found in ways.items() if SPINNING not in way)


def show_threads(rows: Mapping[str, tuple[Measured, Measured]], few: int, many: int) -> None:
    """Print a row per stage: slices of many threads one after the other, and of few threads at once."""
    copies = many // few
    table = Table(
        title=f"Seconds of {copies} slices: {few} thread(s) at once, {many} in sequence", title_justify="left"
    )
    table.add_column("stage")
    for column in ("in sequence", "at once", "gain", "in sequence, busy", "at once, busy", "gain, busy"):
        table.add_column(column, justify="right")
    for address, (sequence, at_once) in rows.items():
        cells = []
        for after, together in ((sequence.alone, at_once.alone), (sequence.beside, at_once.beside)):
            cells += [f"{copies * after:.2f}", f"{together:.2f}", f"{copies * after / together:.2f}"]
        table.add_row(address, *cells)
    TableConsole().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workspace", type=Path, default=Path.cwd(), help="the checkout whose outputs are read (default: here)")
    add("--stages", nargs="+", metavar="STAGE", help=f"such as gadms_finetune@gadms (default: the {LONGEST} longest)")
    add("--threads", nargs="+", type=int, metavar="N", help="two numbers of threads to compare, such as 1 2")
    add("--spinning", action="store_true", help="also as OpenMP's threads wait by themselves")
    add("--json", type=Path)
    options = parser.parse_args()
    try:
        return compare(Workspace.at(workspace_root(options.workspace)), options)
    except BaseException as error:
        return report_error(error)


def compare(workspace: Workspace, options: argparse.Namespace) -> int:
    """Measure and print what was asked for; return the exit code."""
    threads = params.load(workspace.path("params.yaml")).compute.threads
    runs = [graph.find(name) for name in options.stages] if options.stages else longest(workspace)
    few, many = two_numbers(options.threads) if options.threads else (threads, threads)
    if (cores := usable_cores()) < max(threads, many):
        raise ParameterError(f"{max(threads, many)} threads: this process may use {cores} core(s)")
    if others := [run.address for run in runs if not run.stage.heavy]:
        raise ParameterError(f"--stages {' '.join(others)}: must train or draw, which is done in steps")
    if missing := sorted({path for run in runs for path in run.inputs.values() if not workspace.path(path).exists()}):
        raise DataError(f"{workspace.root}: {', '.join(missing)} not there: run `make repro`, or `dvc pull`")
    rows: dict[str, dict[str, Measured]] = {}
    compared: dict[str, tuple[Measured, Measured]] = {}
    with bound_to(max(2, many)):
        for run in runs:
            own = {threads: measure(workspace.root, run, threads)}
            steps = own[threads].steps
            if many != threads:
                own[many] = measure(workspace.root, run, many, steps=steps)
            rows[run.address] = {str(number): found for number, found in own.items()}
            if options.spinning:
                spun = measure(workspace.root, run, many, steps=steps, spinning=True)
                if spun.digest != own[many].digest:
                    raise RuntimeError(f"{run.address}: its results depend on how threads wait")
                rows[run.address][f"{many}, {SPINNING}"] = spun
            if options.threads:
                at_once = measure(workspace.root, run, few, steps=steps, copies=many // few)
                compared[run.address] = own[many], at_once
    worst = show(rows)
    if compared:
        show_threads(compared, few, many)
    print(f"at most {MAX_RATIO} times slower: {'held' if worst <= MAX_RATIO else 'NOT HELD'} ({worst:.2f})")
    if options.json:
        document = {
            "slices": {address: {way: asdict(found) for way, found in own.items()} for address, own in rows.items()},
            "at_once": {address: {"threads": few, **asdict(found)} for address, (_, found) in compared.items()},
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(worst > MAX_RATIO)


def two_numbers(given: list[int]) -> tuple[int, int]:
    few, many = (given[0], given[-1])
    if len(given) != 2 or not 0 < few < many or many % few:
        raise ParameterError(
            f"--threads {' '.join(map(str, given))}: two numbers, of which the second is a multiple of the first"
        )
    return few, many


@contextmanager
def bound_to(cores: int) -> Iterator[None]:
    """Bind this process, and those that it starts, to the first `cores` of its cores."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    sys.exit(main())
