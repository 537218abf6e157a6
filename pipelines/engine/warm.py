"""A process that has imported the libraries, and forks the workers of stages from itself.

A worker takes some five seconds to import torch, open_clip and diffusers, and a pipeline has thirty workers. `python -m pipelines
repro` starts one such process beside DVC, which ends with it; the runner of a stage asks it for a worker:

    runner  -- module, paths, environment; descriptors of stdin, stdout, stderr and the scratch folder's lock -->  warm process
            <-- the worker's process number; at its end exit code and use of resources ---------------------------  keeper

The keeper is the worker's parent, forked for it alone, so that nothing that runs depends on the warm process any more. And no
runner depends on it: where there is none, or none that answers, it starts its worker itself (`pipelines.engine.child`).

Only libraries are imported here: a worker reads our own code when it starts, as its runner fingerprinted it. Nothing starts a
thread or touches a GPU before the fork.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pipelines.identity.closure import ROOT

WARM = "PIPELINES_WARM"
"""Environment variable: `<threads>:<address>` of the warm process. Its libraries were loaded for that many threads."""
LIBRARIES = (
    "torch",
    "torchvision",
    "open_clip",
    "diffusers",
    "transformers",
    "safetensors.torch",
    "pyarrow.parquet",
    "PIL.Image",
)
KEEPER, WORKER = "stage-keeper", "stage-worker"
"""What the processes are called in lists (at most 15 letters): their command line is that of the warm process."""


@dataclass(frozen=True)
class Usage:
    """Of a worker that has ended."""

    cpu_seconds: float
    peak_memory: int  # as the system counts it, see `resource.getrusage`


class WarmWorker:
    """A worker that the warm process forked; with the part of `subprocess.Popen` that a runner needs."""

    def __init__(self, pid: int, stdin: TextIO, connection: socket.socket) -> None:
        self.pid, self.stdin = pid, stdin
        self.returncode: int | None = None
        self.usage: Usage | None = None
        self._connection = connection

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(WORKER, timeout or 0)
            told = _read_line(self._connection)
            if told is None:  # its keeper was killed; it shall not live on unwatched
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                told = {"code": -signal.SIGKILL, "cpu_seconds": 0.0, "peak_memory": 0}
            self.returncode = int(told["code"])
            self.usage = Usage(told["cpu_seconds"], told["peak_memory"])
            self._connection.close()
        return self.returncode

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def fork_worker(module: str, threads: int, keeps: int) -> WarmWorker | None:
    """A worker that runs `module` with this process's environment, output and descriptor `keeps`; None where there is nobody to
    fork one."""
    for_threads, _, address = os.environ.get(WARM, "").partition(":")
    if for_threads != str(threads) or not address:
        return None
    path = [str(ROOT), *sys.path[1:]]  # of a fresh `python -m` there
    told = json.dumps({"module": module, "folder": str(ROOT), "path": path, "environment": dict(os.environ)}) + "\n"
    read_end, write_end = os.pipe()
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        socket.send_fds(connection, [b"\n"], [read_end, 1, 2, keeps])
        connection.sendall(told.encode())
        answer = _read_line(connection)
    except OSError:
        answer = None
    finally:
        os.close(read_end)
    if answer is None:
        os.close(write_end)
        connection.close()
        return None
    return WarmWorker(answer["pid"], os.fdopen(write_end, "w", encoding="utf-8"), connection)


def start_beside(threads: int) -> int:
    """Start a warm process that lives as long as this one, also after an exec; runners below find it in the environment.

    Returns the descriptor that holds it: it ends when that is closed.
    """
    address = str(Path(tempfile.mkdtemp(prefix="warm-")) / "socket")
    read_end, write_end = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)  # a runner that comes early waits, and no longer than it would for imports of its own
        own = listener.fileno()
        subprocess.Popen(
            [sys.executable, "-m", "pipelines.engine.warm", address, str(own)],
            stdin=read_end,
            cwd=ROOT,
            env={**os.environ, **thread_settings(threads)},
            pass_fds=(own,),
        )
    os.close(read_end)
    os.set_inheritable(write_end, True)  # through the exec; what DVC starts does not get it
    os.environ[WARM] = f"{threads}:{address}"
    return write_end


def thread_settings(threads: int) -> dict[str, str]:
    """What libraries read from the environment when they are imported: threads of their pools, bars on a terminal alone."""
    quiet = {} if sys.stderr.isatty() else {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **quiet}


@contextlib.contextmanager
def warm_process(threads: int) -> Iterator[None]:
    """A warm process for what is run inside."""
    held = start_beside(threads)
    try:
        yield
    finally:
        os.environ.pop(WARM)
        os.close(held)


def main(address: str, descriptor: int) -> None:
    """Serve until standard input ends, which is when whoever started this process has."""
    for number in (signal.SIGINT, signal.SIGTERM):  # which come to every process of a group: it ends when its work does
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers report to runners
    try:
        with socket.socket(fileno=descriptor) as listener:
            for library in LIBRARIES:
                if _left():
                    return
                with contextlib.suppress(ImportError):
                    importlib.import_module(library)
            gc.freeze()
            _serve(listener)
    finally:
        shutil.rmtree(Path(address).parent, ignore_errors=True)


def _serve(listener: socket.socket) -> None:
    sources: list[socket.socket | int] = [listener, 0]
    while True:
        select.select(sources, [], [])
        if _left():
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            try:
                listener.close()
                _keep(connection)
            finally:  # whatever happens, it never becomes a second server
                os._exit(1)
        connection.close()


def _left() -> bool:
    """Whether whoever started this process has ended."""
    return bool(select.select([0], [], [], 0)[0])


def _keep(connection: socket.socket) -> None:
    """In the keeper: fork the worker, and tell its runner how it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _call_it(KEEPER)
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
    told = _read_line(connection)
    if told is None or len(descriptors) != 4:
        os._exit(1)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _work(told, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(OSError):  # a runner that is gone; its worker sees that and ends
        connection.sendall(json.dumps({"pid": pid}).encode() + b"\n")
    _, status, used = os.wait4(pid, 0)
    end = {
        "code": os.waitstatus_to_exitcode(status),
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_memory": used.ru_maxrss,
    }
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(end).encode() + b"\n")


def _work(told: dict[str, Any], descriptors: list[int]) -> None:
    """In the worker: become what a fresh process would be, and run the module, which does not return."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _call_it(WORKER)
    for own, given in enumerate(descriptors[:3]):
        os.dup2(given, own)
        os.close(given)
    os.chdir(told["folder"])
    os.environ.clear()
    os.environ.update(told["environment"])
    sys.path[:] = told["path"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "pipelines"]:  # may be another checkout's
        del sys.modules[name]
    sys.argv[1:] = []
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=os.isatty(1))  # it may have been another kind of thing than it is now
    try:
        runpy.run_module(told["module"], run_name="__main__", alter_sys=True)
    except BaseException:  # of the module's imports: what it does itself ends in an exit code of its own
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


def _call_it(name: str) -> None:
    with contextlib.suppress(OSError):  # Linux alone has it
        Path("/proc/self/comm").write_text(name)


def _read_line(connection: socket.socket) -> dict[str, Any] | None:
    """One JSON line; None when the other end has closed before."""
    text = b""
    while not text.endswith(b"\n"):
        try:
            part = connection.recv(1 << 16)
        except ConnectionError:
            return None
        if not part:
            return None
        text += part
    return dict(json.loads(text))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
    os._exit(0)  # skips slow clean-up of libraries, and what they have to say of it
