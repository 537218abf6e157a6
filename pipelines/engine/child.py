"""The process that does a stage's work, and the signal that ends it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TypeAlias

from pipelines.engine.warm import WarmWorker, fork_worker
from pipelines.engine.worker import StageTask
from pipelines.graph import StageRun
from pipelines.identity.closure import ROOT
from pipelines.params import Compute, Parameters
from pipelines.scratch.folder import FolderLock, Scratch
from pipelines.workspace import Workspace

POLL_SECONDS = 0.2
WORKER, SUBMITTER = "pipelines.engine.worker", "pipelines.jobs.submitter"
Child: TypeAlias = "subprocess.Popen[str] | WarmWorker"


@contextmanager
def working(
    run: StageRun, params: Parameters, scratch: Scratch, workspace: Workspace, lock: FolderLock
) -> Iterator[Child]:
    """The child process, told what to do but not yet to begin; ended on the way out whatever happens.

    It runs the code that was fingerprinted (`ROOT`), and holds the scratch folder (`lock`) until it is gone itself.
    """
    process = _start(module_of(run, params.compute), params.compute.threads, lock)
    assert process.stdin is not None
    request = StageTask(
        run.address,
        str(workspace.root),
        str(scratch.folder),
        params.only(run.stage.reads),
        params.compute.model_dump(mode="json"),
    )
    try:
        process.stdin.write(request.to_json() + "\n")
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
    """The module that does the work of `run`: in a process here, or as a Ray job."""
    return SUBMITTER if compute.backend == "job" and run.stage.heavy else WORKER


def _start(module: str, threads: int, lock: FolderLock) -> Child:
    warm = fork_worker(module, threads, lock.descriptor) if module == WORKER else None
    return warm or subprocess.Popen(
        [sys.executable, "-m", module], stdin=subprocess.PIPE, text=True, cwd=ROOT, pass_fds=(lock.descriptor,)
    )


def send_go(process: Child) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write("go\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it failed while loading: its exit code, read next, says how


def wait(process: Child) -> int | None:
    """The exit code, or None when it still runs after a moment."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(POLL_SECONDS)
    return None


@dataclass
class StopSignal:
    """Whether SIGTERM came, and whether it interrupts at once, as Ctrl-C does."""

    received: bool = False
    interrupts: bool = True


@contextmanager
def interruptible() -> Iterator[StopSignal]:
    """SIGTERM ends the stage: the child stopped, the run marked, exit code 130. A second one does not wait."""
    stop = StopSignal()

    def interrupt(number: int, frame: FrameType | None) -> None:
        again, stop.received = stop.received, True
        if stop.interrupts or again:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
