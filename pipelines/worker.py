"""The process in which a stage's work is done: `python -m pipelines.worker`, started by the runner.

It reads one JSON line that says what to do, loads the libraries, and waits for a second line, "go", which the runner sends once
the tracking server has answered. Until then nothing is computed. When the runner dies, this process ends too: its end of the pipe
closes.
"""

import json
import os
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.files import write_atomically
from pipelines import graph
from pipelines.errors import TRY_AGAIN, exit_code, speaks_for_itself
from pipelines.params import Compute, Parameters
from pipelines.scratch import Scratch


@dataclass(frozen=True)
class Work:
    """One attempt at a stage, as text."""

    address: str
    root: str
    scratch: str
    parameters: dict[str, Any]
    compute: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main() -> int:
    work = Work(**json.loads(sys.stdin.readline()))
    compute = Compute(**work.compute)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before anything starts a thread pool
        os.environ[variable] = str(compute.threads)
    try:
        from pipelines import execution

        run = graph.find(work.address)
        execution.load_code(run)
        if sys.stdin.readline().strip() != "go":
            return TRY_AGAIN
        threading.Thread(target=_end_with_the_runner, daemon=True).start()
        metrics = execution.execute(
            run, Path(work.root), Scratch(Path(work.scratch)), Parameters.partial(work.parameters), compute
        )
        write_atomically(Scratch(Path(work.scratch)).result, json.dumps(metrics, sort_keys=True))
    except BaseException as error:
        if not speaks_for_itself(error):
            traceback.print_exc()
        else:
            print(f"error: {work.address}: {str(error) or type(error).__name__}", file=sys.stderr, flush=True)
        return exit_code(error)
    return 0


def _end_with_the_runner() -> None:
    sys.stdin.read()  # returns when the runner's end of the pipe closes
    os._exit(TRY_AGAIN)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skips slow clean-up of libraries; everything that matters is on disk
