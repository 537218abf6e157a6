"""A process that a warm process has forked (`pipelines.engine.warm`), from the side of the one that asked for it.

here  -- module, paths, environment; descriptors of stdin, stdout, stderr and more ------------------------>  warm process
      <-- the new process's id; at its end exit code and resource usage ----------------------------------  monitor
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from pipelines.identity.closure import ROOT

WARM = "PIPELINES_WARM"
"""Environment variable `<threads>:<address>`: the warm process for workers, and the number of threads its libraries have."""
MONITOR, RUNNER, WORKER = "stage-monitor", "stage-runner", "stage-worker"
"""Process names (at most 15 letters): their command line is that of the warm process."""


@dataclass(frozen=True)
class Usage:
    """What a process has used."""

    cpu_seconds: float
    peak_memory: int  # as the system counts it, see `resource.getrusage`


class ForkedProcess:
    """A process that the warm process forked, with those methods of `subprocess.Popen` that its supervisor needs."""

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
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            ended = read_line(self._connection)
            if ended is None:  # its monitor was killed, and it must not outlive its supervisor
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                ended = {"code": -signal.SIGKILL, "cpu_seconds": 0.0, "peak_memory": 0}
            self.returncode = int(ended["code"])
            self.usage = Usage(ended["cpu_seconds"], ended["peak_memory"])
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork(
    address: str,
    module: str,
    name: str,
    environment: Mapping[str, str],
    output: tuple[int, int] = (1, 2),
    descriptors: Sequence[int] = (),
) -> ForkedProcess | None:
    """Return a process called `name` that runs `module`; None where no warm process at `address` answers.

    Its standard output and standard error are the descriptors `output`; it also holds `descriptors`.
    """
    read_end, write_end = os.pipe()
    try:
        answer = request(address, module, name, environment, [read_end, *output, *descriptors])
    finally:
        os.close(read_end)
    if answer is None:
        os.close(write_end)
        return None
    pid, connection = answer
    return ForkedProcess(pid, os.fdopen(write_end, "w", encoding="utf-8"), connection)


def request(
    address: str, module: str, name: str, environment: Mapping[str, str], descriptors: Sequence[int]
) -> tuple[int, socket.socket] | None:
    """Return the id of a process called `name` that runs `module`, and the connection on which its end is reported.

    None where no warm process at `address` answers. The process holds `descriptors`: standard input, output and error, then others.
    """
    path = [str(ROOT), *sys.path[1:]]  # as of a new `python -m` in that folder
    given = {"module": module, "name": name, "folder": str(ROOT), "path": path, "environment": dict(environment)}
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        socket.send_fds(connection, [b"\n"], descriptors)
        connection.sendall(json.dumps(given).encode() + b"\n")
        answer = read_line(connection)
    except OSError:
        answer = None
    if answer is None:
        connection.close()
        return None
    return answer["pid"], connection


def fork_worker(module: str, threads: int, descriptor: int) -> ForkedProcess | None:
    """Return a worker that runs `module` with this process's environment, output and `descriptor`; None without a warm process."""
    for_threads, _, address = os.environ.get(WARM, "").partition(":")
    if for_threads != str(threads) or not address:
        return None
    return fork(address, module, WORKER, os.environ, descriptors=[descriptor])


def read_line(connection: socket.socket) -> dict[str, Any] | None:
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
