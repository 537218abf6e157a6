"""Runs a stage function: here, or as a training run under Ray Train.

A training stage always goes through Ray Train. With `compute.workers: 0` that is its local mode: the same function, called in this
process, at 0.1 s instead of the 10 to 20 s that starting worker processes takes. With workers, every rank runs the stage function;
ranks above 0 write into a folder that is thrown away, so that stage code has no notion of ranks.
"""

import importlib
import logging
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from pipelines.cluster import device_of, settle_environment, start_ray, uses_gpu
from pipelines.context import StageContext
from pipelines.graph import StageRun
from pipelines.params import Compute, Parameters
from pipelines.scratch import Scratch

Metrics = dict[str, Any]


class StageFunction(Protocol):
    """`run` in a stage's file: typed parameters and paths in, outputs written, metrics returned."""

    def __call__(
        self, params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
    ) -> Metrics: ...


def load_code(run: StageRun) -> StageFunction:
    """Import the stage's file and all it needs."""
    return cast(StageFunction, importlib.import_module(f"pipelines.stages.{run.stage.name}").run)


def execute(run: StageRun, root: Path, scratch: Scratch, params: Parameters, compute: Compute) -> Metrics:
    """Do the work of `run`; outputs go below `scratch.writing`, at the paths they will have in the workspace."""

    def work(rank: int, world_size: int, on_save: Callable[[Mapping[str, float]], None]) -> Metrics:
        torch.set_num_threads(compute.threads)
        context = StageContext(
            scratch,
            seed=getattr(params, "seed", 0),
            arm=run.arm,
            device=device_of(compute),
            rank=rank,
            world_size=world_size,
            strategy=compute.strategy,
            on_save=on_save,
        )
        discarded = Path(tempfile.mkdtemp(prefix="rank-")) if rank else None
        folder = discarded or scratch.writing
        inputs = {name: root / path for name, path in run.inputs.items()}
        outputs = {name: folder / path for name, path in run.outputs.items()}
        for path in outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return load_code(run)(params, inputs, outputs, context)
        finally:
            if discarded:
                shutil.rmtree(discarded, ignore_errors=True)

    if not run.stage.trains:
        return work(0, 1, lambda metrics: None)
    return under_ray_train(work, compute, scratch.folder)


def under_ray_train(
    work: Callable[[int, int, Callable[[Mapping[str, float]], None]], Metrics], compute: Compute, storage: Path
) -> Metrics:
    """Call `work(rank, world_size, on_save)` in Ray Train's workers and return what rank 0 returned.

    A lost worker is replaced and the group starts again, up to `compute.max_failures` times; our own checkpoint store decides
    where it goes on. Each attempt has a new run name, as Ray must not resume by itself.
    """
    settle_environment()
    import ray
    import ray.train
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop() -> Metrics:
        logging.getLogger("ray.train").setLevel(logging.WARNING)  # else every report is a line
        train = ray.train.get_context()
        return work(train.get_world_rank(), train.get_world_size(), lambda metrics: ray.train.report(dict(metrics)))

    local, on_gpu = compute.workers == 0, uses_gpu(compute)
    started = not local and not ray.is_initialized()
    if started:
        start_ray(compute)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    trainer = TorchTrainer(
        loop,
        scaling_config=ScalingConfig(
            num_workers=compute.workers,
            use_gpu=on_gpu,
            resources_per_worker=None if local else {"CPU": compute.threads, **({"GPU": 1} if on_gpu else {})},
        ),
        run_config=RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=str(storage / "ray"),
            failure_config=FailureConfig(max_failures=compute.max_failures, controller_failure_limit=2),
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:  # nothing is forgiven: the stage's own error is raised in place of Ray's wrapping
        raise _cause(error) from error
    finally:
        shutil.rmtree(storage / "ray", ignore_errors=True)
        if started:
            ray.shutdown()
    return cast(Metrics, result.return_value)


def _cause(error: BaseException) -> BaseException:
    """The stage's own error behind what Ray wraps around it."""
    from ray.train import WorkerGroupError

    if isinstance(error, WorkerGroupError):
        failures = list(error.worker_failures.values())
        return failures[0] if failures else error
    return error
