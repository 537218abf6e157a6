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
from typing import Self

from pipelines.engine.forked import RUNNER, ForkedProcess, fork
from pipelines.engine.warm import warm_runners, warm_workers
from pipelines.graph import StageRun
from pipelines.identity.closure import ROOT
from pipelines.scheduling.stage_runner import RunnerTask
from pipelines.scratch.folder import folder_stem
from pipelines.tracking.addresses import tracking_uri
from pipelines.workspace import Workspace

MODULE = "pipelines.scheduling.stage_runner"
LOGS = "logs"
"""Folder in the scratch root: one folder per `repro`, in it one log per stage run."""
KEPT_LOGS = 20
"""Folders of logs that are kept, the newest ones."""
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
        self._warm = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._warm.close()

    def start(self, run: StageRun, environment: Mapping[str, str]) -> RunnerProcess:
        """Start the runner of a stage run, with `environment` added to this process's. Raises as `parent_run` does."""
        self._address = self._address or self._start_warm_processes()
        parent = self._parent_run()  # imports MLflow while the warm processes do
        own = {"MLFLOW_TRACKING_URI": self._store, "DVC_STAGE": run.address, "DVC_ROOT": str(self.workspace.root)}
        given = {**os.environ, **own, **environment}
        log = self.logs / f"{folder_stem(run.address)}.log"
        with open(log, "ab") as output:
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
        return RunnerProcess(run, log, process)

    @cached_property
    def _store(self) -> str:
        """The address of the tracking store, found once, so that no runner asks git for it."""
        return tracking_uri(self.workspace)

    def _start_warm_processes(self) -> str:
        """Return the address of that for runners."""
        self.logs.mkdir(parents=True)
        remove_old_logs(self.logs.parent)
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # they would go to the logs
        address = self._warm.enter_context(warm_runners(self.threads, own_session=True))
        self._warm.enter_context(warm_workers(self.threads, own_session=True))
        return address


def remove_old_logs(folder: Path, kept: int = KEPT_LOGS) -> None:
    """Remove all but the newest folders of logs; their names begin with the time."""
    for old in sorted(path for path in folder.iterdir() if path.is_dir())[:-kept]:
        shutil.rmtree(old, ignore_errors=True)
