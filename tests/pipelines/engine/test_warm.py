"""The warm process: its workers are what fresh ones are, and nothing depends on it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
from processes import wait_until

from pipelines.engine import child, forked, warm
from pipelines.engine.ray_cluster import set_ray_defaults
from pipelines.graph import all_runs
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import tree_digests
from pipelines.params import load
from pipelines.schema.running import Compute
from pipelines.scratch.folder import FolderLock

MODULE = """
import os, sys
told = sys.stdin.readline().strip()
if told == "sleep":
    import time
    print("asleep", flush=True)
    time.sleep(300)
loaded = "torch" in sys.modules and "pipelines.engine.execution" in sys.modules
print(told, os.environ["SAID"], os.getcwd(), os.environ.get("OMP_NUM_THREADS"), loaded, sys.argv[1:], flush=True)
print("and to the other", file=sys.stderr)
os._exit(int(told))
"""


@pytest.fixture
def address(warm_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the warm process, for a runner that can import the module `pretended_worker`."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "pretended_worker.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    return warm_address


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """Where this process's own output goes meanwhile, and with it a worker's."""
    kept, file = os.dup(1), os.open(tmp_path / "output", os.O_RDWR | os.O_CREAT)
    os.dup2(file, 1)
    yield tmp_path / "output"
    os.dup2(kept, 1)
    os.close(kept)
    os.close(file)


@pytest.fixture
def worker(address: str, output: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[forked.ForkedProcess]:
    monkeypatch.setenv(forked.WARM, address)
    monkeypatch.setenv("SAID", "this")
    with open(os.devnull) as other:
        found = forked.fork_worker("pretended_worker", 1, other.fileno())
    assert found is not None
    yield found
    found.kill()
    found.wait(100)


def tell(worker: forked.ForkedProcess, word: str) -> None:
    worker.stdin.write(f"{word}\n")
    worker.stdin.flush()


def asleep(worker: forked.ForkedProcess, output: Path) -> psutil.Process:
    tell(worker, "sleep")
    wait_until(lambda: "asleep" in output.read_text())
    return psutil.Process(worker.pid)


def test_a_worker_has_its_runners_environment_output_and_folder_and_the_libraries(worker, output):
    assert worker.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.1)
    tell(worker, "7")
    assert worker.wait(60) == worker.poll() == worker.returncode == 7
    threads = os.environ.get("OMP_NUM_THREADS")
    assert output.read_text() == f"7 this {ROOT} {threads} True []\n"
    assert 0 < worker.usage.cpu_seconds < 30
    assert worker.usage.peak_memory > 10_000


def test_a_killed_worker_has_the_signals_number(worker, output):
    asleep(worker, output).kill()
    assert worker.wait(100) == -signal.SIGKILL


def test_a_worker_ends_when_it_is_told_to_and_its_keeper_outlives_a_signal_to_all(worker, output):
    process = asleep(worker, output)
    monitor = process.parent()
    assert (monitor.name(), process.name()) == (forked.MONITOR, forked.WORKER)
    monitor.terminate()
    worker.terminate()
    assert worker.wait(100) == -signal.SIGTERM


def test_a_worker_does_not_outlive_its_keeper(worker, output):
    process = asleep(worker, output)
    process.parent().kill()
    assert worker.wait(100) == -signal.SIGKILL
    process.wait(100)


def test_without_a_warm_process_or_for_another_number_of_threads_there_is_no_worker(address, monkeypatch, tmp_path):
    monkeypatch.setenv(forked.WARM, address)
    assert forked.fork_worker("pretended_worker", 2, 0) is None
    monkeypatch.setenv(forked.WARM, f"1:{tmp_path / 'none'}")
    assert forked.fork_worker("pretended_worker", 1, 0) is None
    monkeypatch.delenv(forked.WARM)
    assert forked.fork_worker("pretended_worker", 1, 0) is None


def test_it_ends_with_the_process_that_started_it_and_what_it_forked_goes_on(tmp_path):
    """A killed `dvc repro` leaves nothing but a runner with its worker."""
    (tmp_path / "pretended_worker.py").write_text(MODULE)
    code = """
import os, sys, time
from pipelines.engine import forked, warm
address, held = warm.start_warm_process("runners", 1)
os.environ[forked.WARM] = f"1:{address}"
worker = forked.fork_worker("pretended_worker", 1, 0)
print(worker.pid, address, flush=True)
worker.stdin.write("sleep\\n"); worker.stdin.flush()
time.sleep(300)
"""
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "SAID": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    pid, address = started.stdout.readline().split()
    worker = psutil.Process(int(pid))
    (server,) = (child for child in psutil.Process(started.pid).children() if address in child.cmdline())
    assert started.stdout.readline() == "asleep\n"
    started.kill()
    server.wait(100)
    assert not Path(address).parent.exists()
    assert worker.is_running()
    worker.kill()


def test_a_stage_gives_the_same_bytes_in_less_processor_time(place, address, tmp_path):
    threads = load(place.root / "params.yaml").compute.threads
    found = []
    for given, home in (("", "cold"), (address.replace("1:", f"{threads}:"), "warm")):
        finished = place.run("prepare", PIPELINES_HOME=str(tmp_path / home), **{forked.WARM: given})
        assert finished.returncode == 0, finished.stderr
        found.append(tree_digests(place.root / "data/people"))
        (done,) = (tmp_path / home).glob("prepare-*/DONE.json")
        found.append(json.loads(done.read_text())["cost"]["cost/cpu_seconds"])
    cold, cold_seconds, warmed, warm_seconds = found
    assert cold == warmed
    assert 0 < warm_seconds < cold_seconds  # no libraries to import


def test_code_that_was_changed_since_the_warm_process_began_is_imported_again(tmp_path, monkeypatch):
    file = tmp_path / "edited.py"
    file.write_text("")
    monkeypatch.setitem(sys.modules, "pipelines.edited", ModuleType("pipelines.edited"))
    monkeypatch.setattr(sys.modules["pipelines.edited"], "__file__", str(file), raising=False)
    later = time.time_ns()
    while file.stat().st_ctime_ns >= later:  # a clock of the file system ticks slowly
        later = time.time_ns()
    assert not warm._own_code_changed(later)
    copied = tmp_path / "copied.py"
    copied.write_text("changed = True")
    os.utime(copied, (0, 0))  # as rsync leaves files
    time.sleep(0.02)
    copied.rename(file)
    assert warm._own_code_changed(later)
    file.unlink()
    assert warm._own_code_changed(time.time_ns())


@pytest.mark.parametrize(
    ("address", "workers", "forks"),
    [("probe", 0, True), ("probe", 2, False), ("prepare", 2, True), ("train_parity", 0, False)],
)
def test_a_worker_that_starts_ray_is_a_new_process(address, workers, forks, monkeypatch):
    found = {"fork": SimpleNamespace(), "new": SimpleNamespace()}
    monkeypatch.setattr(child, "fork_worker", lambda *given: found["fork"])
    monkeypatch.setattr(child.subprocess, "Popen", lambda *given, **options: found["new"])
    run = next(run for run in all_runs() if run.stage.name == address)
    started = child._start(run, Compute(workers=workers), FolderLock(0, None))
    assert started is found["fork" if forks else "new"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of threads that libraries in C have started")
def test_a_warm_process_with_a_thread_forks_nothing(tmp_path, monkeypatch, capfd):
    before = len(warm.other_threads())
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    assert len(warm.other_threads()) == before + 1
    monkeypatch.setattr(warm, "_parent_ended", lambda: False)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        caller.connect(str(tmp_path / "socket"))
        warm._serve(listener, 0)  # returns
    ended.set()
    thread.join()
    assert "it forks nothing" in capfd.readouterr().err


@pytest.mark.parametrize("length", [4, 60, 120])
def test_a_long_tmpdir_leaves_sockets_in_tmp(length, tmp_path, monkeypatch):
    """Those of the warm process, and those of Ray, whose paths below it are longer."""
    folder = Path("/tmp") if length == 4 else Path(str(tmp_path / "t").ljust(length, "t"))
    folder.mkdir(exist_ok=True)
    commands = []
    monkeypatch.setattr(warm.subprocess, "Popen", lambda command, **options: commands.append(command))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for name in ("RAY_TMPDIR", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # restored afterwards
    address, held = warm.start_warm_process("workers", 1)  # binds the socket
    os.close(held)
    assert commands[0][-2] == address
    monkeypatch.delenv("RAY_TMPDIR")
    set_ray_defaults()
    assert Path(address).is_socket()
    assert (Path(address).parents[1] == folder) == (len(str(folder)) < 80)
    assert os.environ.get("RAY_TMPDIR") == (None if len(str(folder)) < 30 else "/tmp")
    shutil.rmtree(Path(address).parent)
