"""A stage in a process of its own that halts between two of its steps, for `contention.py`.

`python benchmarks/sliced_stage.py ROOT STAGE THREADS` reads numbers of steps from standard input, and says when it has taken them.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from components.errors import ParameterError
from pipelines import graph, params
from pipelines.errors import StageFailedError, report_error
from pipelines.graph import StageRun
from pipelines.schema.reading import read_yaml
from pipelines.threads.settings import OPENMP_WAITING, thread_settings

MASKED_AT_ONCE = ("gadms_pretrain", "gadms_finetune")
"""Stages whose slices have no contrastive steps before: steps that mask words take longest."""


class SlicedStage:
    """A process that runs a stage function and halts between its steps."""

    def __init__(self, root: Path, run: StageRun, threads: int, *, spinning: bool = False) -> None:
        environment = {**os.environ, **thread_settings(threads)}
        if spinning:
            environment = {name: value for name, value in environment.items() if name not in OPENMP_WAITING}
        command = [sys.executable, __file__, str(root), run.address, str(threads)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, steps: int) -> None:
        """Start to take `steps` steps; 0 ends the stage."""
        assert self._process.stdin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()

    def wait(self) -> str:
        """Return what the process says when it halts: "ready" at first, "halted" after a slice, a digest at the end."""
        assert self._process.stdout
        said = self._process.stdout.readline().strip()
        if not said:  # it has printed why
            raise StageFailedError("a stage failed", self._process.wait())
        return said

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Halts:
    """Counts steps, and reads from standard input after how many to halt next. The first halt is before any step counts."""

    def __init__(self, answers: TextIO) -> None:
        self._answers, self._left = answers, 0
        self._says = "ready"

    def step(self) -> bool:
        """Return whether to end, after a halt where one is due."""
        self._left -= 1
        if self._left > 0:
            return False
        print(self._says, file=self._answers, flush=True)
        self._says = "halted"
        self._left = int(sys.stdin.readline() or 0)
        return self._left == 0


def serve(root: Path, run: StageRun, threads: int) -> None:
    """Run the stage function of `run` in a folder of its own; numbers of steps come on standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    import torch

    from components.training.loop import StopRequested
    from pipelines.engine.context import StageContext
    from pipelines.engine.execution import stage_function
    from pipelines.identity.fingerprint import digest, tree_digests
    from pipelines.scratch.folder import Scratch

    torch.set_num_threads(threads)
    halts = Halts(answers)

    class SlicedContext(StageContext):
        """A context that halts at each step of training, or after each batch of pictures (which is a checkpoint)."""

        def phase(self, name: str, *, quiet: bool = False) -> "SlicedContext":
            return SlicedContext(self.scratch, **options, phase=name, quiet=quiet)

        def stop_requested(self) -> bool:
            return halts.step()

        def save(self, state: Mapping[str, Any], step: int) -> None:
            super().save(state, step)
            if not run.stage.trains and halts.step():
                raise StopRequested

    document = read_yaml(root / "params.yaml")
    if run.stage.name in MASKED_AT_ONCE:
        document[run.stage.name]["method"]["warmup_steps"] = 0
    chosen = params.from_document(document, "params.yaml")
    options: dict[str, Any] = {"seed": chosen.seed, "arm": run.arm, "device": torch.device("cpu")}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Scratch(Path(folder) / "scratch")
        scratch.begin()
        outputs = {name: scratch.writing / path for name, path in run.outputs.items()}
        for path in outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        inputs = {name: root / path for name, path in run.inputs.items()}
        try:
            stage_function(run)(chosen, inputs, outputs, SlicedContext(scratch, **options))
        except StopRequested:
            print(digest(tree_digests(scratch.checkpoints)), file=answers, flush=True)
        else:
            raise ParameterError(f"{run.address}: has too few steps for so many slices: measure other --stages")


if __name__ == "__main__":
    try:
        serve(Path(sys.argv[1]), graph.find(sys.argv[2]), int(sys.argv[3]))
    except BaseException as error:
        sys.exit(report_error(error))
