"""The process that runs a stage function, from the side of the runner; and requests to stop."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TypeAlias

import psutil

from pipelines.engine.forked import ForkedProcess, Usage, fork_worker
from pipelines.engine.worker import StageTask
from pipelines.graph import StageRun
from pipelines.identity.closure import ROOT
from pipelines.params import ParameterFile
from pipelines.schema.running import Compute
from pipelines.scratch.folder import FolderLock, Scratch
from pipelines.workspace import Workspace

POLL_SECONDS = 0.2
WORKER, SUBMITTER = "pipelines.engine.worker", "pipelines.jobs.submitter"
STOP = signal.SIGUSR1
"""A request to stop like a first SIGTERM, of which a runner may get one too: a scheduler of machines sends it to every process."""
Child: TypeAlias = "subprocess.Popen[str] | ForkedProcess"


@contextmanager
def stage_process(
    run: StageRun, params: ParameterFile, scratch: Scratch, workspace: Workspace, lock: FolderLock
) -> Iterator[Child]:
    """Start the process of a stage, which waits for `send_go`; it is ended on leaving the block, whatever happens.

    It runs the code that was fingerprinted (`ROOT`), and keeps the scratch folder locked until it has ended itself.
    """
    process = _start(run, params.compute, lock)
    assert process.stdin is not None
    task = StageTask(
        run.address,
        str(workspace.root),
        str(scratch.folder),
        params.only(run.stage.reads),
        params.compute.model_dump(mode="json"),
    )
    try:
        process.stdin.write(task.to_json() + "\n")
        process.stdin.flush()
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def module_of(run: StageRun, compute: Compute) -> str:
    """Return the module that runs the stage: in a process here, or as a Ray job."""
    return SUBMITTER if compute.backend == "job" and run.stage.heavy else WORKER


def _start(run: StageRun, compute: Compute, lock: FolderLock) -> Child:
    module = module_of(run, compute)
    # A process that starts Ray has imported it itself; that takes longer than the imports anyway.
    starts_ray = run.stage.starts_workers or (run.stage.trains and compute.workers > 0)
    forked = None if module != WORKER or starts_ray else fork_worker(module, compute.threads, lock.descriptor)
    return forked or subprocess.Popen(
        [sys.executable, "-m", module], stdin=subprocess.PIPE, text=True, cwd=ROOT, pass_fds=(lock.descriptor,)
    )


def send_go(process: Child) -> None:
    """Let the process begin."""
    assert process.stdin is not None
    try:
        process.stdin.write("go\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it failed while loading, as its exit code will show


def wait(process: Child) -> int | None:
    """Return the exit code, or None if the process still runs after POLL_SECONDS."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(POLL_SECONDS)
    return None


def usage_of(process: Child) -> Usage | None:
    """Return what a process has used so far where `RUSAGE_CHILDREN`, which has the children that have ended, does not count it."""
    if process.returncode is not None:
        return process.usage if isinstance(process, ForkedProcess) else None
    try:
        used = psutil.Process(process.pid).cpu_times()
    except psutil.Error:
        return None
    return Usage(used.user + used.system + used.children_user + used.children_system, 0)


@dataclass
class StopSignal:
    """Whether a stop was requested, and whether that raises KeyboardInterrupt at once, as Ctrl-C does."""

    received: bool = False
    interrupts: bool = True


@contextmanager
def catch_sigterm() -> Iterator[StopSignal]:
    """Record SIGTERM or STOP inside the block, or raise KeyboardInterrupt for it (always for a second SIGTERM)."""
    stop, terminated = StopSignal(), []

    def request(number: int, frame: FrameType | None) -> None:
        again, stop.received = number in terminated, True
        if stop.interrupts or again:
            raise KeyboardInterrupt
        if number == signal.SIGTERM:
            terminated.append(number)

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, STOP)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
