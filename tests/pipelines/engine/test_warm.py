"""The warm process: its workers are what fresh ones are, and nothing depends on it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import wait_until

from pipelines.engine import warm
from pipelines.engine.ray_cluster import set_ray_defaults
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import tree_digests
from pipelines.params import load

MODULE = """
import os, sys
told = sys.stdin.readline().strip()
if told == "sleep":
    import time
    print("asleep", flush=True)
    time.sleep(300)
loaded = "torch" in sys.modules and "pipelines" not in sys.modules
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
def worker(address: str, output: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[warm.WarmWorker]:
    monkeypatch.setenv(warm.WARM, address)
    monkeypatch.setenv("SAID", "this")
    with open(os.devnull) as other:
        found = warm.fork_worker("pretended_worker", 1, other.fileno())
    assert found is not None
    yield found
    found.kill()
    found.wait(100)


def tell(worker: warm.WarmWorker, word: str) -> None:
    worker.stdin.write(f"{word}\n")
    worker.stdin.flush()


def asleep(worker: warm.WarmWorker, output: Path) -> psutil.Process:
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
    keeper = process.parent()
    assert (keeper.name(), process.name()) == (warm.KEEPER, warm.WORKER)
    keeper.terminate()
    worker.terminate()
    assert worker.wait(100) == -signal.SIGTERM


def test_a_worker_does_not_outlive_its_keeper(worker, output):
    process = asleep(worker, output)
    process.parent().kill()
    assert worker.wait(100) == -signal.SIGKILL
    process.wait(100)


def test_without_a_warm_process_or_for_another_number_of_threads_there_is_no_worker(address, monkeypatch, tmp_path):
    monkeypatch.setenv(warm.WARM, address)
    assert warm.fork_worker("pretended_worker", 2, 0) is None
    monkeypatch.setenv(warm.WARM, f"1:{tmp_path / 'none'}")
    assert warm.fork_worker("pretended_worker", 1, 0) is None
    monkeypatch.delenv(warm.WARM)
    assert warm.fork_worker("pretended_worker", 1, 0) is None


def test_it_ends_with_the_process_that_started_it_and_what_it_forked_goes_on(tmp_path):
    """A killed `dvc repro` leaves nothing but a runner with its worker."""
    (tmp_path / "pretended_worker.py").write_text(MODULE)
    code = """
import os, sys, time
from pipelines.engine import warm
from pipelines.engine.ray_cluster import set_ray_defaults
warm.start_warm_process(1)
worker = warm.fork_worker("pretended_worker", 1, 0)
print(worker.pid, os.environ[warm.WARM].partition(":")[2], flush=True)
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
    pid, socket = started.stdout.readline().split()
    worker = psutil.Process(int(pid))
    (server,) = (child for child in psutil.Process(started.pid).children() if socket in child.cmdline())
    assert started.stdout.readline() == "asleep\n"
    started.kill()
    server.wait(100)
    assert not Path(socket).parent.exists()
    assert worker.is_running()
    worker.kill()


def test_a_stage_gives_the_same_bytes_in_less_processor_time(place, address, tmp_path):
    threads = load(place.root / "params.yaml").compute.threads
    found = []
    for given, home in (("", "cold"), (address.replace("1:", f"{threads}:"), "warm")):
        finished = place.run("prepare", PIPELINES_HOME=str(tmp_path / home), **{warm.WARM: given})
        assert finished.returncode == 0, finished.stderr
        found.append(tree_digests(place.root / "data/people"))
        (done,) = (tmp_path / home).glob("prepare-*/DONE.json")
        found.append(json.loads(done.read_text())["cost"]["cost/cpu_seconds"])
    cold, cold_seconds, warmed, warm_seconds = found
    assert cold == warmed
    assert 0 < warm_seconds < cold_seconds  # no libraries to import


@pytest.mark.parametrize("length", [4, 60, 120])
def test_a_long_tmpdir_leaves_sockets_in_tmp(length, tmp_path, monkeypatch):
    """Those of the warm process, and those of Ray, whose paths below it are longer."""
    folder = Path("/tmp") if length == 4 else Path(str(tmp_path / "t").ljust(length, "t"))
    folder.mkdir(exist_ok=True)
    commands = []
    monkeypatch.setattr(warm.subprocess, "Popen", lambda command, **options: commands.append(command))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for name in (warm.WARM, "RAY_TMPDIR", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # restored afterwards
    os.close(warm.start_warm_process(1))  # binds the socket
    socket = Path(commands[0][-2])
    monkeypatch.delenv("RAY_TMPDIR")
    set_ray_defaults()
    assert socket.is_socket()
    assert (socket.parents[1] == folder) == (len(str(folder)) < 80)
    assert os.environ.get("RAY_TMPDIR") == (None if len(str(folder)) < 30 else "/tmp")
    shutil.rmtree(socket.parent)
