"""Warm processes: one that has done the imports forks the processes that need them.

A worker takes some five seconds to import torch, open_clip, diffusers and Ray, a runner two to import MLflow, and a pipeline has
thirty of each. `python -m pipelines repro` starts a warm process for either kind, and both end with it; `pipelines.engine.forked`
requests a process from one. Its parent is a monitor, forked for it alone, so that nothing that runs depends on the warm process.
Nor does anything that starts: where no warm process answers, a new process is started (`pipelines.engine.child`).

Our own code is imported too. A forked process runs the code that is there when it starts, as that is what is fingerprinted: when a
file has changed since the warm process was started, it drops our modules and imports them again.

Nothing connects to a store, starts a thread or touches a GPU before the fork: none of these survives one. A warm process in which a
library has started a thread forks nothing, and says which.
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
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pipelines.engine.forked import MONITOR, WARM, read_line
from pipelines.engine.socket_folder import socket_folder
from pipelines.identity.closure import ROOT
from pipelines.threads.settings import thread_settings

Kind = Literal["workers", "runners"]
LIBRARIES: dict[Kind, tuple[str, ...]] = {
    "workers": (
        "torch",
        "torchvision",
        "open_clip",
        "diffusers",
        "transformers",
        "safetensors.torch",
        "pyarrow.parquet",
        "PIL.Image",
        "ray.train.torch",
    ),
    "runners": (
        "mlflow.tracking",
        "mlflow.store.tracking.sqlalchemy_store",
        "mlflow.system_metrics.system_metrics_monitor",
        "mlflow.store.tracking.sqlalchemy_workspace_store",
        "sqlalchemy.dialects.sqlite",
        "alembic.command",
        "psutil",
        "pydantic",
        "ruamel.yaml",
    ),
}
OWN = ("components", "pipelines")
WITHOUT_THREADS = {"MLFLOW_DISABLE_TELEMETRY": "true", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Environment in which neither MLflow nor Arrow starts a thread when it is imported."""


def start_warm_process(
    kind: Kind, threads: int, *, own_session: bool = False, also: Sequence[str] = ()
) -> tuple[str, int]:
    """Start a warm process, whose libraries use `threads` threads. Return its address, and a descriptor.

    It ends when the descriptor is closed, as it is when this process ends. In an `own_session`, it and what it forks get none of a
    terminal's signals. It imports the modules `also` after those of its kind.
    """
    from pipelines.engine.ray_cluster import (
        ray_defaults,
    )  # the warm process itself must import nothing before its libraries

    address = str(Path(tempfile.mkdtemp(prefix="warm-", dir=socket_folder(len("/warm-12345678/socket")))) / "socket")
    read_end, write_end = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)  # an early request waits, and no longer than it would for its own imports
        descriptor = listener.fileno()
        subprocess.Popen(
            [sys.executable, "-m", "pipelines.engine.warm", kind, address, str(descriptor), *also],
            stdin=read_end,
            cwd=ROOT,
            env={**os.environ, **ray_defaults(), **thread_settings(threads), **WITHOUT_THREADS},
            pass_fds=(descriptor,),
            start_new_session=own_session,
        )
    os.close(read_end)
    return address, write_end


def silence_import_notices() -> None:
    """Keep two notices off the screen that importing diffusers prints in every process where torchao is installed.

    Both are about torchao's own classes: a registration with torch.compile, and tensors of files saved by its older versions.
    """
    for name in ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def warm_workers(threads: int, *, own_session: bool = False) -> Iterator[None]:
    """Run a warm process for the workers of the runners that are started inside the block, which find it in the environment."""
    address, descriptor = start_warm_process("workers", threads, own_session=own_session)
    os.environ[WARM] = f"{threads}:{address}"
    try:
        yield
    finally:
        os.environ.pop(WARM)
        os.close(descriptor)


@contextmanager
def warm_runners(threads: int, *, own_session: bool = False) -> Iterator[str]:
    """Run a warm process for runners inside the block, and give its address."""
    address, descriptor = start_warm_process("runners", threads, own_session=own_session)
    try:
        yield address
    finally:
        os.close(descriptor)


def main(kind: Kind, address: str, descriptor: int, *also: str) -> None:
    """Serve until standard input ends, which is when the process that started this one has ended."""
    # These come to every process of a group; this one ends with its parent.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # monitors report to who asked for them
    began = time.time_ns()
    try:
        with socket.socket(fileno=descriptor) as listener:
            silence_import_notices()
            for module in (*LIBRARIES[kind], *_own_modules(kind), *also):
                if _parent_ended():
                    return
                with contextlib.suppress(Exception):  # code that is being edited, say: what needs it says so
                    importlib.import_module(module)
            gc.freeze()
            _serve(listener, began)
    finally:
        shutil.rmtree(Path(address).parent, ignore_errors=True)


def _own_modules(kind: Kind) -> list[str]:
    """Return modules of ours to import, all but those that run as `__main__`; for runners, read what fingerprints need."""
    from pipelines.graph import all_stages
    from pipelines.identity.closure import stage_sources

    if kind == "workers":
        return ["pipelines.engine.execution", *(f"pipelines.stages.{stage.name}" for stage in all_stages())]
    for stage in all_stages():
        stage_sources(stage)
    return ["pipelines.engine.runner"]


def _serve(listener: socket.socket, began: int) -> None:
    sources: list[socket.socket | int] = [listener, 0]
    while True:
        select.select(sources, [], [])
        if _parent_ended():
            return
        if threads := other_threads():
            print(f"warning: the warm process has threads ({', '.join(threads)}): it forks nothing", file=sys.stderr)
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            try:
                listener.close()
                _run_keeper(connection, began)
            finally:  # it must never become a second server
                os._exit(1)
        connection.close()


def other_threads() -> list[str]:
    """Return the names of this process's threads but for the first, those of libraries in C among them; [] where none can tell."""
    try:
        found = [int(number) for number in os.listdir("/proc/self/task")]
        return [Path(f"/proc/self/task/{number}/comm").read_text().strip() for number in found if number != os.getpid()]
    except OSError:  # not Linux
        return []


def _parent_ended() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def _run_keeper(connection: socket.socket, began: int) -> None:
    """Fork the process that is requested, and report its id and its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _set_process_name(MONITOR)
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 8)
    request = read_line(connection)
    if request is None or len(descriptors) < 3:
        os._exit(1)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(request, descriptors, began)
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(OSError):  # who asked is gone; the process notices and ends
        connection.sendall(json.dumps({"pid": pid}).encode() + b"\n")
    _, status, used = os.wait4(pid, 0)
    cpu_seconds = used.ru_utime + used.ru_stime
    end = {"code": os.waitstatus_to_exitcode(status), "cpu_seconds": cpu_seconds, "peak_memory": used.ru_maxrss}
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(end).encode() + b"\n")


def _become(request: dict[str, Any], descriptors: list[int], began: int) -> None:
    """Set up this process like a new one and run the module, which does not return."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _set_process_name(request["name"])
    for own, given in enumerate(descriptors[:3]):
        os.dup2(given, own)
        os.close(given)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:] = request["path"]
    if request["folder"] != str(ROOT) or _own_code_changed(began):
        for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
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


def _own_code_changed(since: int) -> bool:
    """Return whether a file of a module of ours has changed since then (nanoseconds since 1970), or is gone."""
    files = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] in OWN]
    try:
        return any(os.stat(file).st_ctime_ns >= since for file in files if file)
    except FileNotFoundError:
        return True


def _set_process_name(name: str) -> None:
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/comm").write_text(name)


if __name__ == "__main__":
    main("runners" if sys.argv[1] == "runners" else "workers", sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
    os._exit(0)  # skips slow clean-up of libraries, and its messages
