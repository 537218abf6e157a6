"""The process in which a stage's runner works: `python -m pipelines.scheduling.stage_runner`, started by the scheduler.

It reads a `RunnerTask` as one JSON line. When its standard input ends, because the scheduler asks it to stop or has ended, it stops
as after SIGTERM: training saves a checkpoint first. A terminal's Ctrl-C goes to the scheduler alone.
"""

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.engine.child import STOP
from pipelines.engine.parent import end_with_parent
from pipelines.engine.runner import run_stage
from pipelines.engine.warm import silence_import_notices
from pipelines.errors import replace_unprintable, report_error
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class RunnerTask:
    """One stage run of a workspace, below a run of MLflow."""

    address: str
    root: str
    home: str
    parent_run: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main() -> int:
    replace_unprintable()
    for number in (signal.SIGTERM, STOP):  # while no worker runs
        signal.signal(number, signal.default_int_handler)
    try:
        task = RunnerTask(**json.loads(sys.stdin.readline()))
        end_with_parent(lambda: os.kill(os.getpid(), STOP))
        silence_import_notices()
        run_stage(task.address, Workspace(Path(task.root), Path(task.home)), task.parent_run)
    except BaseException as error:
        return report_error(error)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skips slow clean-up of libraries; everything that matters is on disk
