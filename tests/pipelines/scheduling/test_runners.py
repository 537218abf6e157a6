"""Runners in processes of their own: their logs, how they are stopped, and MLflow's store under many at once."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import clean_environment, wait_until
from workspaces import Place

from pipelines.engine.child import STOP, catch_sigterm
from pipelines.engine.forked import RUNNER, WARM, ForkedProcess, fork
from pipelines.engine.warm import warm_runners
from pipelines.errors import InfrastructureError
from pipelines.graph import find
from pipelines.identity.closure import ROOT
from pipelines.locks.file_lock import file_lock
from pipelines.scheduling import runners as subject
from pipelines.scheduling.runners import LOCK, MODULE, RunnerProcess, Runners, remove_old_logs
from pipelines.scheduling.stage_runner import RunnerTask
from pipelines.workspace import Workspace

WRITER = """
import json, os, sys, time
from pathlib import Path
from pipelines.scratch.metric_log import MetricLog
from pipelines.tracking.runs import RunFacts, connect
from pipelines.workspace import Workspace
root, number, begin = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
while not begin.exists():
    time.sleep(0.005)
for turn in range(3):
    folder = root / ".runs" / f"stage-{number}-{turn}"
    folder.mkdir(parents=True)
    tracker = connect(Workspace(root, root / ".runs"))
    facts = RunFacts(f"{number}.{turn}", {"number": str(number)}, {"key": number}, {})
    tracked = tracker.open(folder, facts, parent=sys.argv[4])
    for step in range(20):
        MetricLog(folder / "metrics.jsonl").append("main", step, {"loss": number + step / 100})
        if step % 5 == 0:
            assert tracked.deliver(timeout=20)
    tracked.end("FINISHED", {"final": float(number)})
    tracked.close()
"""


def process_with(log: Path, code: int | None) -> RunnerProcess:
    ended = SimpleNamespace(poll=lambda: code, stdin=io.StringIO())
    return RunnerProcess(find("prepare"), log, ended)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("printed", "code", "reason"),
    [
        ("step 1\nerror: data/raw: not there\nwarning: later\n", 3, "data/raw: not there"),
        ("Traceback\n  File\nValueError: a bug\n\n", 1, "ValueError: a bug"),
        ("prepare: paused at step 12: run again to resume\n", 130, "prepare: paused at step 12: run again to resume"),
        ("", 1, "exit code 1"),
        ("error: of the worker\n", -9, "its process was ended by SIGKILL: run again to resume"),
    ],
)
def test_the_reason_is_the_last_error_in_the_log(tmp_path, printed, code, reason):
    (tmp_path / "log").write_text(printed)
    assert process_with(tmp_path / "log", code).reason() == reason


def test_a_long_log_is_read_from_its_end(tmp_path):
    (tmp_path / "log").write_text("".join(f"line {number}\n" for number in range(100_000)))
    assert process_with(tmp_path / "log", 1).tail(3) == ["line 99997", "line 99998", "line 99999"]
    assert process_with(tmp_path / "none", 1).tail(3) == []


def folder_of_logs(root: Path, name: str, days: float) -> Path:
    """Make a folder of logs that has changed for the last time so many days ago."""
    folder = root / name
    folder.mkdir()
    (folder / "probe.log").write_text("step 1\n")
    changed = time.time() - 86400 * days
    for path in (folder / "probe.log", folder):
        os.utime(path, (changed, changed))
    return folder


def test_the_logs_that_changed_last_are_kept_whatever_their_names(tmp_path):
    for days in range(2, 7):
        folder_of_logs(tmp_path, f"2026-01-0{days}T00-00-00-1", days)  # the later the name, the older the log
    own = folder_of_logs(tmp_path, "2025-12-31T00-00-00-1", 0)
    remove_old_logs(own, kept=3)
    assert sorted(path.name[:10] for path in tmp_path.iterdir()) == ["2025-12-31", "2026-01-02", "2026-01-03"]


def test_logs_that_are_written_stay(tmp_path):
    running, lately = folder_of_logs(tmp_path, "running", 5), folder_of_logs(tmp_path, "lately", 5)
    (lately / "probe.log").write_text("step 2\n")  # from another machine, whose lock is not seen here
    own, ended = folder_of_logs(tmp_path, "own", 0), folder_of_logs(tmp_path, "ended", 5)
    with file_lock(ended / LOCK, ""):
        pass
    with file_lock(running / LOCK, ""):
        for path in (running / LOCK, ended / LOCK, running, ended):
            os.utime(path, (0, 0))
        remove_old_logs(own, kept=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lately", "own", "running"]


@pytest.fixture
def runners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runners]:
    """Starts processes that end at once, and no warm ones."""
    for name in ("warm_runners", "warm_workers"):
        monkeypatch.setattr(subject, name, lambda *given, **options: nullcontext("nobody"))
    monkeypatch.setattr(subject, "fork", lambda *given: subprocess.Popen(["true"], stdin=subprocess.PIPE, text=True))
    with Runners(Workspace(tmp_path, tmp_path / ".runs"), 1, lambda: "parent") as runners:
        yield runners


def test_a_command_holds_its_logs_until_it_ends(runners):
    runners.prepare(find("probe"))
    with pytest.raises(InfrastructureError), file_lock(runners.logs / LOCK, ""):
        pass
    runners.__exit__()
    with file_lock(runners.logs / LOCK, ""):
        pass


def test_a_stage_starts_though_its_logs_were_removed(runners):
    runners.prepare(find("prepare"))
    shutil.rmtree(runners.logs)
    runners.prepare(find("probe"))
    assert (runners.logs / "probe.log").read_text() == ""  # there before the outputs are removed
    shutil.rmtree(runners.logs)
    process = runners.start(find("probe"), {})
    assert process.log == runners.logs / "probe.log"
    assert process.log.is_file()


@pytest.mark.parametrize(
    ("signals", "raised"),
    [
        ([STOP], False),
        ([STOP, signal.SIGTERM], False),  # a scheduler of machines sends it to every process
        ([signal.SIGTERM, STOP], False),
        ([signal.SIGTERM, signal.SIGTERM], True),
    ],
)
def test_a_request_to_stop_is_no_second_sigterm(signals, raised):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) if raised else nullcontext(), catch_sigterm() as stop:
        stop.interrupts = False
        for number in signals:
            os.kill(os.getpid(), number)
        assert stop.received
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.fixture
def training(with_people: Place, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The runner of a probe in mid-training, as the scheduler starts it."""
    with_people.edit({"probe": {"training": {"steps": 400, "batch": 8, "report_every": 2, "checkpoint_every": 100}}})
    environment = clean_environment(MLFLOW_TRACKING_URI=with_people.store, **{WARM: with_people.warm})
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    task = RunnerTask("probe", str(with_people.root), str(with_people.home), "parent")
    process.stdin.write(task.to_json() + "\n")
    process.stdin.flush()
    wait_until(lambda: any(file.read_text() for file in with_people.home.glob("probe-*/metrics.jsonl")), process)
    yield process
    process.kill()


@pytest.mark.heavy  # in `make chaos` too: the scheduler is killed
def test_a_runner_whose_scheduler_has_ended_saves_a_checkpoint(training, with_people, tmp_path):
    training.stdin.close()
    assert training.wait(100) == 130
    (step,) = with_people.steps("probe")
    assert 0 < step < 100
    assert f"paused at step {step}" in (tmp_path / "log").read_text()
    assert [run.info.status for run in with_people.tracked("probe")] == ["KILLED"]


@pytest.mark.heavy  # the tests of the store's lock and of `delivery` take less
def test_a_sqlite_store_takes_what_many_runners_write_at_once(tmp_path, monkeypatch):
    """Eight processes that open, log and end at once, on a store that the first of them creates: nothing locked, nothing lost."""
    from mlflow import MlflowClient

    store, begin = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "begin"
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    environment = clean_environment(MLFLOW_TRACKING_URI=store, PYTHONWARNINGS="error::RuntimeWarning")
    with warm_runners(1) as address, open(tmp_path / "printed", "w") as printed:
        writers = []
        for number in range(8):
            output = (printed.fileno(), printed.fileno())
            writer = fork(address, "forked_code", RUNNER, environment, output)
            assert isinstance(writer, ForkedProcess)
            given = {"code": WRITER, "arguments": [str(tmp_path), str(number), str(begin), "parent"]}
            writer.stdin.write(json.dumps(given) + "\n")
            writer.stdin.flush()
            writers.append(writer)
        begin.touch()
        assert [writer.wait(300) for writer in writers] == [0] * 8, (tmp_path / "printed").read_text()
    assert "locked" not in (tmp_path / "printed").read_text()
    client = MlflowClient(store)
    (experiment,) = client.search_experiments(filter_string="name = 'crossmodal-pipelines'")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    assert len(runs) == 24
    for run in runs:
        number = int(run.data.tags["number"])
        assert run.info.status == "FINISHED"
        assert run.data.metrics["final"] == number
        points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")]
        assert sorted(points) == [(step, number + step / 100) for step in range(20)]
