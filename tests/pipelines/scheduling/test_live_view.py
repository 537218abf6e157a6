"""What a person sees while stages run, and in the end."""

import io
import json
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipelines.graph import find
from pipelines.identity.closure import ROOT
from pipelines.locks.lease import Holder
from pipelines.params import load
from pipelines.scheduling.dvc_project import silence_progress_bars
from pipelines.scheduling.live_view import HEARTBEAT_SECONDS, LiveView, duration
from pipelines.scheduling.parts import Result, State, Summary
from pipelines.scheduling.progress import StageProgress, Steps, step_totals
from pipelines.scratch.metric_log import MetricLog

RUNS = [find(address) for address in ("prepare", "taca_train@lora", "taca_train@taca", "curate", "index", "report")]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def view_on(console: Console, clock: Clock, steps: Steps | None = None) -> LiveView:
    progress = SimpleNamespace(read=lambda: steps)
    return LiveView(RUNS, lambda run, pid: progress, lambda run: 90.0, console, clock)


def stage(*tail: str) -> SimpleNamespace:
    return SimpleNamespace(log=Path("logs/one.log"), pid=7, tail=lambda lines: list(tail))


def printed(view: LiveView) -> str:
    return view.console.file.getvalue()  # type: ignore[attr-defined]


def test_a_file_gets_lines_with_times_and_something_every_half_minute():
    clock = Clock()
    view = view_on(Console(file=io.StringIO(), width=300), clock, Steps("main", 120, 400, 2.0))
    with view:
        view.started(RUNS[1], stage())
        for _ in range(100):
            clock.now += 1
            view.waiting()
        view.ended(RUNS[1], Result(State.DONE, 100.0))
    lines = printed(view).splitlines()
    assert lines[0].endswith("what stages print goes to logs")
    assert lines[1].endswith("taca_train@lora started, about 1:30")
    assert lines[2].endswith("taca_train@lora 0:30, step 120 of 400, 2/s, 2:20 left")
    assert lines[-1].endswith("taca_train@lora done after 1:40")
    assert len(lines) == 3 + int(100 // HEARTBEAT_SECONDS)
    assert all(time.strptime(line[:8], "%H:%M:%S") for line in lines)


def test_a_terminal_shows_how_far_each_stage_is_and_how_many_stand_how():
    clock = Clock()
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    view = view_on(console, clock, Steps("main", 120, 400, 2.0))
    with view:
        view.ended(RUNS[0], Result(State.FOUND, reason="in DVC's cache"))
        view.started(RUNS[1], stage())
        clock.now += 42
        view.waiting()
    live = printed(view).split("taca_train@lora started")[-1]
    assert "taca_train@lora  running  0:42  step 120 of 400  2/s  2:20 left" in live
    assert "1 found: prepare" in live
    assert "4 waiting: taca_train@taca, curate, index, report" in live


def test_a_failure_shows_its_line_the_end_of_its_log_and_no_secret():
    view = view_on(Console(file=io.StringIO(), width=300), Clock())
    view.started(RUNS[1], stage("Traceback", "ValueError: at sqlite://user:secret@host [bold]"))
    view.ended(RUNS[1], Result(State.FAILED, 3.0, "ValueError: at http://user:secret@host [bold]", 1, Path("one.log")))
    assert "taca_train@lora failed after 0:03: ValueError: at http://" in printed(view)
    assert "    the end of logs/one.log:\n    Traceback\n" in printed(view)
    assert "[bold]" in printed(view)
    assert "secret" not in printed(view)


def test_why_a_stage_failed_is_printed_once_in_full_and_shortened_in_the_table():
    view = view_on(Console(file=io.StringIO(), width=1000), Clock())
    reason = "data/raw/README.md: " + "no such set; " * 30
    view.started(RUNS[1], stage("read 3 records", f"error: {reason}"))
    results = {RUNS[1].address: Result(State.FAILED, 3.0, reason.strip(), 3, Path("one.log"))}
    view.ended(RUNS[1], results[RUNS[1].address])
    results |= {run.address: Result(State.FOUND, reason="unchanged") for run in RUNS if run != RUNS[1]}
    view.summarise(Summary(results, 3))
    assert printed(view).count(reason.strip()) == 1
    assert "    read 3 records\n" in printed(view)
    (row,) = (line for line in printed(view).splitlines() if line.startswith("│"))
    assert "data/raw/README.md: no such set; " in row
    assert len(row) < 120


def test_a_log_that_holds_nothing_but_the_error_is_not_shown():
    view = view_on(Console(file=io.StringIO(), width=300), Clock())
    view.started(RUNS[1], stage("error: data/raw: not there"))
    view.ended(RUNS[1], Result(State.FAILED, 3.0, "data/raw: not there", 3, Path("one.log")))
    assert "the end of" not in printed(view)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (0, ""),
        (1, "; mend what failed, then the same command goes on from here"),
        (2, "; correct what is named above, then the same command goes on from here"),
        (3, "; put the data right that is named above, then the same command goes on from here"),
        (75, "; the same command goes on from here"),
        (130, "; the same command goes on from here"),
    ],
)
def test_the_last_line_says_what_to_do_by_the_exit_code(code, advice):
    view = view_on(Console(file=io.StringIO(), width=300), Clock())
    view.summarise(Summary({run.address: Result(State.DONE, 2.0) for run in RUNS}, code))
    assert printed(view).splitlines()[-1] == f"6 done in 0:00{advice}"


def test_the_table_of_a_success_has_no_empty_column():
    view = view_on(Console(file=io.StringIO(), width=300), Clock())
    view.summarise(Summary({run.address: Result(State.DONE, 2.0) for run in RUNS}))
    assert [cell.strip() for cell in printed(view).splitlines()[1].strip("┃").split("┃")] == ["stage", "result", "time"]


def test_the_end_says_what_failed_what_was_not_run_and_what_was_done():
    view = view_on(Console(file=io.StringIO(), width=100), Clock())
    results = [
        Result(State.FOUND, reason="unchanged"),
        Result(State.DONE, 61.0),
        Result(State.FAILED, 5.0, "data/raw: not there", 3),
        Result(State.NOT_RUN, reason="needs taca_train@taca"),
        Result(State.FOUND, reason="in DVC's cache"),
        Result(State.STOPPED, 9.0, "report: paused at step 3: run again to resume"),
    ]
    view.summarise(Summary({run.address: result for run, result in zip(RUNS, results, strict=True)}, 3))
    rows = [line for line in printed(view).splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows] == ["taca_train@taca", "report", "curate", "index", "taca_train@lora"]
    assert "data/raw: not there" in rows[0]
    assert (
        printed(view)
        .splitlines()[-1]
        .startswith("1 done, 1 found, 1 failed, 1 stopped, 1 not run, 1 unchanged in 0:00; put the data right")
    )


def test_a_no_op_is_one_line():
    view = view_on(Console(file=io.StringIO()), Clock())
    view.summarise(Summary({run.address: Result(State.FOUND, reason="unchanged") for run in RUNS}))
    for run in RUNS:
        view.ended(run, Result(State.FOUND, reason="unchanged"))
    assert printed(view) == "6 stages up to date\n"


def test_dvcs_progress_bars_do_not_run_through_the_view(caplog):
    from dvc.progress import Tqdm
    from dvc_data.callbacks import Tqdm as OfData

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("dvc.progress", "dvc_data.callbacks"):  # whose levels caplog restores
        caplog.set_level(logging.NOTSET, name)
    assert not Tqdm(total=3, file=Terminal()).disable
    silence_progress_bars()
    for kind in (Tqdm, OfData):
        assert kind(total=3, file=Terminal()).disable


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (125, "2:05"), (3600, "1:00:00"), (7384, "2:03:04")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two scratch folders of a stage; the runner of the second is this process."""
    for name, pid in (("base_model-aaaaaaaaaaaaaaaa", 1), ("base_model-bbbbbbbbbbbbbbbb", os.getpid())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lease.json").write_text(json.dumps(asdict(Holder("token", "machine", "host", pid))))
    return tmp_path


def test_progress_is_that_of_the_runners_own_folder_phase_and_attempt(home, monkeypatch):
    params, now = load(ROOT / "params.yaml"), 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    section = params.base_model
    progress = StageProgress(find("base_model"), os.getpid(), home, params)
    assert progress.read() is None
    log = MetricLog(home / "base_model-bbbbbbbbbbbbbbbb" / "metrics.jsonl")
    for step in (10, 20, 30):
        now += 5
        log.append("vae", step, {"loss": 1.0})
    assert progress.read() == Steps("vae", 30, section.autoencoder.steps, 2.0)
    log.append("flow", 10, {"loss": 1.0})
    assert progress.read() == Steps("flow", 10, section.training.steps, None)
    log.take_back("flow", 0)
    for step in (5, 10):
        now += 1
        log.append("flow", step, {"loss": 1.0})
    found = progress.read()
    assert found == Steps("flow", 10, section.training.steps, 5.0)
    assert found.left == (section.training.steps - 10) / 5
    assert StageProgress(find("base_model"), 99, home, params).read() is None
    now += 3600
    resumed = StageProgress(find("base_model"), os.getpid(), home, params)
    for step, rate in ((10, None), (15, None), (20, 2.5)):  # the first is of before the pause
        if step > 10:
            now += 2
            log.append("flow", step, {"loss": 1.0})
        assert resumed.read() == Steps("flow", step, section.training.steps, rate)


def test_the_steps_of_a_stage_are_those_of_its_trainings():
    assert step_totals({"vae": {"steps": 3, "batch": 1}, "other": {"steps": 9}, "flow": {"steps": 5, "batch": 1}}) == [
        3,
        5,
    ]
    assert step_totals({"steps": 7}) == [7]
    assert step_totals({"size": 1}) == []
