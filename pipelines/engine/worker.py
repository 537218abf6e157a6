"""The process in which a stage's work is done: `python -m pipelines.engine.worker`, started by the runner.

It reads one JSON line that says what to do, loads the libraries, and waits for a second line, "go", which the runner sends once
the tracking server has answered. Until then nothing is computed. When the runner dies, this process ends too: its end of the pipe
closes. SIGTERM, which schedulers and spot machines send to every process, lets training save a checkpoint first.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from components.files import write_atomically
from pipelines import graph
from pipelines.engine.warm import for_libraries
from pipelines.errors import INTERRUPTED, TRY_AGAIN, InfrastructureError, report_error
from pipelines.locks.waiting import grace_period
from pipelines.params import Compute, Parameters
from pipelines.scratch.folder import Scratch


@dataclass(frozen=True)
class StageTask:
    """One attempt at a stage, as text."""

    address: str
    root: str
    scratch: str
    parameters: dict[str, Any]
    compute: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main() -> int:
    work = StageTask(**json.loads(sys.stdin.readline()))
    compute = Compute(**work.compute)
    os.environ.update(for_libraries(compute.threads))  # before any is imported
    try:
        from pipelines.engine import execution

        run = graph.find(work.address)
        execution.load_code(run)
        if sys.stdin.readline().strip() != "go":
            return TRY_AGAIN
        if run.stage.trains:
            signal.signal(signal.SIGTERM, _leaver(Scratch(Path(work.scratch))))
        threading.Thread(target=end_with_the_runner, daemon=True).start()
        metrics = execution.execute(
            run, Path(work.root), Scratch(Path(work.scratch)), Parameters.partial(work.parameters), compute
        )
        write_atomically(Scratch(Path(work.scratch)).result, json.dumps(metrics, sort_keys=True))
    except BaseException as raised:
        return report_error(_full_disk(raised) or raised, work.address)
    return 0


def _leaver(scratch: Scratch) -> Callable[[int, FrameType | None], None]:
    """A signal handler that asks training to leave, and ends this process when that takes too long, or at a second signal."""
    told: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if len(told) > 1:
            os._exit(INTERRUPTED)
        scratch.leave.touch()  # the runner may have said so already: signals come to every process, in any order
        timer = threading.Timer(grace_period(), os._exit, [INTERRUPTED])
        timer.daemon = True
        timer.start()

    return leave


def _full_disk(error: BaseException) -> InfrastructureError | None:
    """A full disk, whatever the library that met it calls it: safetensors and Arrow have error types of their own."""
    text = str(error)
    if isinstance(error, OSError) or not ("No space left on device" in text or "os error 28" in text):
        return None
    return InfrastructureError(f"{text.splitlines()[0][:200]}: make room, and run again to go on")


def end_with_the_runner() -> None:
    """For a thread: ends this process when the runner is gone."""
    sys.stdin.read()  # returns when the runner's end of the pipe closes
    os._exit(TRY_AGAIN)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skips slow clean-up of libraries; everything that matters is on disk
