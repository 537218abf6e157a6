"""The warm process: it has imported the libraries and forks the workers of stages.

A worker takes some five seconds to import torch, open_clip and diffusers, and a pipeline has thirty workers. `python -m pipelines
repro` starts one warm process beside DVC, and it ends with DVC; the runner of a stage requests a worker from it:

    runner  -- module, paths, environment; descriptors of stdin, stdout, stderr and the scratch folder's lock -->  warm process
            <-- the worker's process id; at its end exit code and resource usage ---------------------------------  keeper

The keeper is the worker's parent, forked for it alone, so that no running worker depends on the warm process. Nor does a runner:
without a warm process that answers, it starts its worker itself (`pipelines.engine.child`).

Only libraries are imported here: a worker imports our own code when it starts, as its runner fingerprinted it. Nothing starts a
thread or touches a GPU before the fork.
"""

import contextlib
import gc
import importlib
import io
import json
import logging
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

from pipelines.engine.socket_folder import socket_folder
from pipelines.identity.closure import ROOT
from pipelines.threads.settings import thread_settings

WARM = "PIPELINES_WARM"
"""Environment variable `<threads>:<address>`: the warm process and the number of threads its libraries were loaded for."""
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
"""Process names (at most 15 letters): their command line is that of the warm process."""


@dataclass(frozen=True)
class Usage:
    """Resource usage of a worker that has ended."""

    cpu_seconds: float
    peak_memory: int  # as the system counts it, see `resource.getrusage`


class WarmWorker:
    """A worker that the warm process forked, with those methods of `subprocess.Popen` that a runner needs."""

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
            ended = _read_line(self._connection)
            if ended is None:  # its keeper was killed, and it must not outlive its supervisor
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                ended = {"code": -signal.SIGKILL, "cpu_seconds": 0.0, "peak_memory": 0}
            self.returncode = int(ended["code"])
            self.usage = Usage(ended["cpu_seconds"], ended["peak_memory"])
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


def fork_worker(module: str, threads: int, descriptor: int) -> WarmWorker | None:
    """Return a worker that runs `module` with this process's environment, output and `descriptor`; None without a warm process."""
    for_threads, _, address = os.environ.get(WARM, "").partition(":")
    if for_threads != str(threads) or not address:
        return None
    path = [str(ROOT), *sys.path[1:]]  # as of a new `python -m` in that folder
    request = json.dumps({"module": module, "folder": str(ROOT), "path": path, "environment": dict(os.environ)}) + "\n"
    read_end, write_end = os.pipe()
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        socket.send_fds(connection, [b"\n"], [read_end, 1, 2, descriptor])
        connection.sendall(request.encode())
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


def start_warm_process(threads: int) -> int:
    """Start a warm process that lives as long as this one, also after an exec; runners find it in the environment.

    Returns a descriptor; the warm process ends when that is closed.
    """
    address = str(Path(tempfile.mkdtemp(prefix="warm-", dir=socket_folder(len("/warm-12345678/socket")))) / "socket")
    read_end, write_end = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)  # an early runner waits, and no longer than it would for its own imports
        descriptor = listener.fileno()
        subprocess.Popen(
            [sys.executable, "-m", "pipelines.engine.warm", address, str(descriptor)],
            stdin=read_end,
            cwd=ROOT,
            env={**os.environ, **thread_settings(threads)},
            pass_fds=(descriptor,),
        )
    os.close(read_end)
    os.set_inheritable(write_end, True)  # survives the exec; processes that DVC starts do not get it
    os.environ[WARM] = f"{threads}:{address}"
    return write_end


def silence_import_notices() -> None:
    """Keep two notices off the screen that importing diffusers prints in every process where torchao is installed.

    Both are about torchao's own classes: a registration with torch.compile, and tensors of files saved by its older versions.
    """
    for name in ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def warm_process(threads: int) -> Iterator[None]:
    """Run a warm process for the stages inside the block."""
    descriptor = start_warm_process(threads)
    try:
        yield
    finally:
        os.environ.pop(WARM)
        os.close(descriptor)


def main(address: str, descriptor: int) -> None:
    """Serve until standard input ends, which is when the process that started this one has ended."""
    # These come to every process of a group; this one ends with its parent.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers report to runners
    try:
        with socket.socket(fileno=descriptor) as listener:
            silence_import_notices()
            for library in LIBRARIES:
                if _parent_ended():
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
        if _parent_ended():
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            try:
                listener.close()
                _run_keeper(connection)
            finally:  # it must never become a second server
                os._exit(1)
        connection.close()


def _parent_ended() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def _run_keeper(connection: socket.socket) -> None:
    """Fork the worker, and report its process id and its end to the runner."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _set_process_name(KEEPER)
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
    request = _read_line(connection)
    if request is None or len(descriptors) != 4:
        os._exit(1)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become_worker(request, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(OSError):  # the runner is gone; its worker notices and ends
        connection.sendall(json.dumps({"pid": pid}).encode() + b"\n")
    _, status, used = os.wait4(pid, 0)
    cpu_seconds = used.ru_utime + used.ru_stime
    end = {"code": os.waitstatus_to_exitcode(status), "cpu_seconds": cpu_seconds, "peak_memory": used.ru_maxrss}
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(end).encode() + b"\n")


def _become_worker(request: dict[str, Any], descriptors: list[int]) -> None:
    """Set up this process like a new one and run the module, which does not return."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _set_process_name(WORKER)
    for own, given in enumerate(descriptors[:3]):
        os.dup2(given, own)
        os.close(given)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:] = request["path"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "pipelines"]:  # of another checkout, perhaps
        del sys.modules[name]
    sys.argv[1:] = []
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=os.isatty(1))  # standard output may be another kind of file than before
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except BaseException:  # from the module's imports: its own errors end in an exit code
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


def _set_process_name(name: str) -> None:
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/comm").write_text(name)


def _read_line(connection: socket.socket) -> dict[str, Any] | None:
    """Return one JSON line, or None when the other end has closed."""
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
    os._exit(0)  # skips slow clean-up of libraries, and its messages
