"""The environment of processes that tests start, and waiting for what they do."""

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any, Protocol

import psutil


class Process(Protocol):
    def poll(self) -> int | None: ...


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of this project, MLflow, DVC and Ray; and `more`."""
    prefixes = ("PIPELINES_", "MLFLOW_", "DVC_", "RAY_")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)} | more


def output_of(process: "subprocess.Popen[str]", timeout: float = 600) -> tuple[str, str]:
    """Standard output and standard error of a process when it ends; one that does not is killed with all that it has started."""
    try:
        return process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            one.kill()
        out, errors = process.communicate()
        raise AssertionError(f"no end after {timeout} s: {out[-3000:]}{(errors or '')[-3000:]}") from None


def wait_until(
    condition: Callable[[], Any],
    process: Process | None = None,
    timeout: float = 200,
    said: Callable[[], object] = lambda: "",
    pause: float = 0.05,
) -> Any:
    """Return what `condition` returns once that is true. Fails, showing `said()`, when `process` ends before or time runs out.

    The time is for a busy machine: how fast something is, is not what tests ask.
    """
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert process is None or process.poll() is None, f"the process ended with {process.poll()}: {said()}"
        assert time.monotonic() < deadline, f"waited {timeout} s in vain: {said()}"
        time.sleep(pause)
    return found
