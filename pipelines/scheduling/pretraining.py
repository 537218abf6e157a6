"""`python -m pipelines pretrain`: the stages of pre-training, each when what it reads is there, several at a time.

Every stage is resumable by itself, as any stage is: after a kill the same command goes on from the last checkpoints, and what is
finished is found in the scratch root.
"""

import subprocess
import sys
import time
from collections.abc import Sequence

from components.errors import DataError, ParameterError
from pipelines.engine.runner import run_stage
from pipelines.errors import StageFailedError
from pipelines.graph import PRETRAINING, Stage
from pipelines.identity.closure import ROOT
from pipelines.params import load_for
from pipelines.scheduling.stage_runner import RunnerTask
from pipelines.threads.cores import usable_cores
from pipelines.tracking.pretraining_run import pretraining_execution
from pipelines.workspace import Workspace

PREFIX = "pretrain_"
PARTS: tuple[str, ...] = tuple(stage.name.removeprefix(PREFIX) for stage in PRETRAINING)
POLL_SECONDS = 0.2


def pretrain(workspace: Workspace, parts: Sequence[str], jobs: int | None = None) -> None:
    """Bring the named parts (all, for none) up to date, `jobs` at a time (None: as many as there are cores for).

    Raises ParameterError for an unknown part or a mistake in the recipe, DataError where a part needs another that is not there,
    and StageFailedError when a stage failed, which has printed why; the others have ended then.
    """
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ParameterError(f"{', '.join(unknown)}: no part of pre-training: one of {', '.join(PARTS)}")
    chosen = [stage for stage in PRETRAINING if not parts or stage.name.removeprefix(PREFIX) in parts]
    recipe = load_for(PRETRAINING[0], workspace.root)
    _require_inputs(chosen, workspace)
    most = jobs or max(1, usable_cores() // recipe.compute.threads)
    with pretraining_execution(workspace) as run_id:
        if most == 1 or len(chosen) == 1:
            for stage in chosen:
                run_stage(stage.name, workspace, run_id)
        else:
            _run_at_once(chosen, workspace, run_id, most)


def _require_inputs(chosen: Sequence[Stage], workspace: Workspace) -> None:
    made = {path for stage in chosen for path in stage.outputs.values()}
    for stage in chosen:
        for name, path in stage.inputs.items():
            if path not in made and not workspace.path(path).exists():
                raise DataError(f"{path} is not there: run `python -m pipelines pretrain {name}` first")


def _run_at_once(chosen: Sequence[Stage], workspace: Workspace, run_id: str, most: int) -> None:
    """Run the stages in processes of their own. At an error or an interrupt each saves a checkpoint and ends."""
    waiting, running = list(chosen), dict[str, "subprocess.Popen[str]"]()
    failed: dict[str, int] = {}
    try:
        while running or (waiting and not failed):
            pending = {path for stage in waiting for path in stage.outputs.values()}
            pending |= {path for stage in chosen if stage.name in running for path in stage.outputs.values()}
            ready = [stage for stage in waiting if not pending & set(stage.inputs.values())]
            if ready and len(running) < most and not failed:
                waiting.remove(ready[0])
                running[ready[0].name] = _start(ready[0], workspace, run_id)
                continue
            time.sleep(POLL_SECONDS)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                if code := running.pop(name).returncode:
                    failed[name] = code
    finally:
        for process in running.values():
            if process.stdin:
                process.stdin.close()  # it saves a checkpoint and ends
        for process in running.values():
            process.wait()
    if failed:
        name, code = next(iter(failed.items()))
        raise StageFailedError(f"{name} failed: the same command resumes what is unfinished", code)


def _start(stage: Stage, workspace: Workspace, run_id: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.scheduling.stage_runner"],
        stdin=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,  # a terminal's Ctrl-C comes to this process alone
    )
    assert process.stdin is not None
    task = RunnerTask(stage.name, str(workspace.root), str(workspace.home), run_id)
    process.stdin.write(task.to_json() + "\n")
    process.stdin.flush()
    print(f"{stage.name}: started", flush=True)
    return process
