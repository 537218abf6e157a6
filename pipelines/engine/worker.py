"""The process that runs a stage function: `python -m pipelines.engine.worker`, started by the runner.

It reads a `StageTask` as one JSON line, loads the libraries, and waits for a second line, "go", which the runner sends once the
tracking server has answered. Until then nothing is computed. When the runner dies, this process ends too. SIGTERM, which schedulers
and spot machines send to every process, lets training save a checkpoint first.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from components.files import write_atomically
from pipelines import graph
from pipelines.engine.parent import end_with_parent
from pipelines.errors import INTERRUPTED, TRY_AGAIN, InfrastructureError, one_line, replace_unprintable, report_error
from pipelines.locks.waiting import grace_period
from pipelines.params import kind_of
from pipelines.schema.running import Compute
from pipelines.scratch.folder import Scratch
from pipelines.threads.cores import warn_of_too_many_threads
from pipelines.threads.settings import thread_settings


@dataclass(frozen=True)
class StageTask:
    """One attempt at a stage, as the runner sends it to its worker."""

    address: str
    root: str
    scratch: str
    parameters: dict[str, Any]
    compute: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main() -> int:
    replace_unprintable()
    task = StageTask(**json.loads(sys.stdin.readline()))
    compute, scratch = Compute(**task.compute), Scratch(Path(task.scratch))
    scratch.holder = scratch.lease_token()  # that of the runner
    os.environ.update(thread_settings(compute.threads))  # before any library is imported
    warn_of_too_many_threads(compute.threads)
    try:
        from pipelines.engine.execution import RankFolders, execute, stage_function

        run = graph.find(task.address)
        stage_function(run)
        if sys.stdin.readline().strip() != "go":
            return TRY_AGAIN
        if run.stage.trains:
            signal.signal(signal.SIGTERM, _stop_handler(scratch))
        end_with_parent()
        folders = RankFolders(
            Path(task.root), scratch, begun=lambda group: write_atomically(scratch.group_file, group.to_json())
        )
        parameters = kind_of(run.stage).partial(task.parameters)
        metrics = execute(run, lambda rank: nullcontext(folders), parameters, compute, scratch.folder)
        write_atomically(scratch.result_file, json.dumps(metrics, sort_keys=True))
    except KeyboardInterrupt:
        return INTERRUPTED  # the runner says so
    except BaseException as raised:
        if scratch.taken_over_by():
            return TRY_AGAIN  # the runner says so
        return report_error(_full_disk(raised) or raised, task.address)
    return 0


def _stop_handler(scratch: Scratch) -> Callable[[int, FrameType | None], None]:
    """A signal handler that requests a stop, and ends this process when that takes too long, or at a second signal."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(INTERRUPTED)
        scratch.stop_file.touch()  # the runner may have done so already: signals come to every process, in any order
        timer = threading.Timer(grace_period(), os._exit, [INTERRUPTED])
        timer.daemon = True
        timer.start()

    return stop


def _full_disk(error: BaseException) -> InfrastructureError | None:
    """Return the error for a full disk, whatever a library raises for it: safetensors and Arrow have their own types."""
    text = str(error)
    if isinstance(error, OSError) or not ("No space left on device" in text or "os error 28" in text):
        return None
    return InfrastructureError(f"{one_line(text.splitlines()[0])}: make room, and run again to resume")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skips slow clean-up of libraries; everything that matters is on disk
