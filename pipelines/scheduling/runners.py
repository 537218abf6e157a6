"""Starts the runner of each stage in a process of its own, whose output goes to a log file.

Runners are forked from a warm process, and so are their workers. Both warm processes are started with the first stage, in a session
of their own, so that a terminal's Ctrl-C reaches the scheduler alone, which then asks the runners to stop.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Self

from pipelines.engine.forked import RUNNER, ForkedProcess, fork
from pipelines.engine.warm import warm_runners, warm_workers
from pipelines.errors import InfrastructureError
from pipelines.graph import StageRun
from pipelines.identity.closure import ROOT
from pipelines.locks.file_lock import file_lock
from pipelines.scheduling.stage_runner import RunnerTask
from pipelines.scratch.folder import folder_stem
from pipelines.tracking.addresses import tracking_uri
from pipelines.workspace import Workspace

MODULE = "pipelines.scheduling.stage_runner"
LOGS = "logs"
"""Folder in the scratch root: one folder per `repro`, in it one log per stage run."""
LOCK = "lock"
"""File in a folder of logs, locked while its command runs."""
KEPT_LOGS = 20
"""Folders of logs that are kept, those changed last."""
KEPT_SECONDS = 24 * 3600.0
"""A folder of logs that has changed this lately is kept too: a lock is not seen on other machines."""
SAVING_SECONDS = 10.0
"""What a runner may take longer than its stage's grace period, to write down how the stage has ended."""


class RunnerProcess:
    """A runner at work."""

    def __init__(self, run: StageRun, log: Path, process: "ForkedProcess | subprocess.Popen[str]") -> None:
        self.run, self.log = run, log
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def reason(self) -> str:
        """Return the last error in the log, or its last line; of a runner that was killed, the signal."""
        code = self.poll() or 0
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}: run again to resume"
        lines = [line for line in self.tail(200) if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors or lines or [f"exit code {code}"])[-1].strip()

    def tail(self, lines: int) -> list[str]:
        """Return the last lines of the log."""
        with suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 200 * lines))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
        return []

    def stop(self) -> None:
        """End its standard input: it saves the stage's state and ends. A SIGTERM would count as the second, where all got one."""
        if self._process.stdin and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self._process.kill()


class Runners:
    """Starts runners for a workspace. `parent_run` gives the MLflow run of the pipeline; it is called with the first stage."""

    def __init__(self, workspace: Workspace, threads: int, parent_run: Callable[[], str]) -> None:
        self.workspace = workspace
        self.threads = threads
        self.logs = workspace.home / LOGS / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{os.getpid()}"
        self._parent_run = parent_run
        self._address = ""
        self._held = ExitStack()  # the lock on the logs, the warm processes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def prepare(self, run: StageRun) -> None:
        """Do what may fail before the stage's outputs are removed. Raises as `parent_run` does."""
        self._address = self._address or self._start_warm_processes()
        self._parent_run()  # imports MLflow while the warm processes do
        self._open_log(run).close()

    def start(self, run: StageRun, environment: Mapping[str, str]) -> RunnerProcess:
        """Start the runner of a prepared stage run, with `environment` added to this process's."""
        parent = self._parent_run()
        own = {"MLFLOW_TRACKING_URI": self._store, "DVC_STAGE": run.address, "DVC_ROOT": str(self.workspace.root)}
        given = {**os.environ, **own, **environment}
        with self._open_log(run) as output:
            descriptors = output.fileno(), output.fileno()
            process = fork(self._address, MODULE, RUNNER, given, descriptors) or subprocess.Popen(
                [sys.executable, "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
                cwd=ROOT,
                env=given,
                start_new_session=True,
            )
        assert process.stdin is not None
        task = RunnerTask(run.address, str(self.workspace.root), str(self.workspace.home), parent)
        with suppress(BrokenPipeError):  # killed already, as its exit code will show
            process.stdin.write(task.to_json() + "\n")
            process.stdin.flush()
        return RunnerProcess(run, self._log(run), process)

    def _log(self, run: StageRun) -> Path:
        return self.logs / f"{folder_stem(run.address)}.log"

    def _open_log(self, run: StageRun) -> BinaryIO:
        """Open the log of a stage run, in its folder, which is created again where someone has removed it."""
        self.logs.mkdir(parents=True, exist_ok=True)
        return open(self._log(run), "ab")

    @cached_property
    def _store(self) -> str:
        """The address of the tracking store, found once, so that no runner asks git for it."""
        return tracking_uri(self.workspace)

    def _start_warm_processes(self) -> str:
        """Take the folder of logs too. Return the address of the warm process for runners."""
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # they would go to the logs
        address = self._held.enter_context(warm_runners(self.threads, own_session=True))
        self._held.enter_context(warm_workers(self.threads, own_session=True))
        self._held.enter_context(file_lock(self.logs / LOCK, f"another command writes to {self.logs}: run again"))
        with suppress(OSError):  # another command removes some at the moment, say
            remove_old_logs(self.logs)
        return address


def remove_old_logs(own: Path, kept: int = KEPT_LOGS) -> None:
    """Remove the folders of logs beside `own` but those changed last, those changed lately, and those whose command runs.

    The time is that at which `own` has changed, so that the clocks of machines that share the storage need not agree.
    """
    changed = {folder: _last_change(folder) for folder in own.parent.iterdir() if folder.is_dir()}
    lately = _last_change(own) - KEPT_SECONDS
    for folder in sorted(changed, key=changed.__getitem__)[:-kept]:
        if changed[folder] < lately and not _is_locked(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _last_change(folder: Path) -> float:
    """Return when a folder or a file in it has changed, in seconds."""
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))


def _is_locked(folder: Path) -> bool:
    """Return whether the command of a folder of logs runs on this machine, or its lock cannot be tried."""
    with suppress(InfrastructureError, OSError), file_lock(folder / LOCK, "its command runs"):
        return False
    return True
