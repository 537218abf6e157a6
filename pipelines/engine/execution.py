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
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from components.training.loop import LeftOnRequest
from pipelines.engine.context import StageContext
from pipelines.engine.ray_cluster import (
    device_of,
    free_places,
    group_size,
    is_joined,
    settle_environment,
    settle_nodes,
    start_ray,
    wants_gpu,
)
from pipelines.errors import InfrastructureError, is_expected
from pipelines.graph import StageRun
from pipelines.params import Compute, Parameters
from pipelines.scratch.folder import Scratch
from pipelines.scratch.storage import Storage

Metrics = dict[str, Any]
OnSave = Callable[[Mapping[str, float]], None]
RankFunction = Callable[[int, int, OnSave], Metrics]
"""(rank, world size, what to call after a save) -> metrics."""
LEFT: Metrics = {"left": True}
"""Returned by a worker that saved a checkpoint and went, as it was asked to."""


class StageFunction(Protocol):
    """`run` in a stage's file: typed parameters and paths in, outputs written, metrics returned."""

    def __call__(
        self, params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
    ) -> Metrics: ...


@dataclass(frozen=True)
class Place:
    """Where one rank works: inputs below `root` at their paths in the workspace, everything else in `scratch`.

    `after_save` is called by rank 0 when it has saved a checkpoint.
    """

    root: Path
    scratch: Scratch
    after_save: Callable[[], None] = lambda: None


class Site(Protocol):
    """Gives each rank its place, in the process in which it runs."""

    def open(self, rank: int) -> AbstractContextManager[Place]: ...


@dataclass(frozen=True)
class SharedSite:
    """One place for all ranks: on this machine, or in a folder that every node sees."""

    place: Place

    @contextmanager
    def open(self, rank: int) -> Iterator[Place]:
        yield self.place


def load_code(run: StageRun) -> StageFunction:
    """Import the stage's file and all it needs."""
    return cast(StageFunction, importlib.import_module(f"pipelines.stages.{run.stage.name}").run)


def execute(run: StageRun, root: Path, scratch: Scratch, params: Parameters, compute: Compute) -> Metrics:
    """Do the work of `run`; outputs go below `scratch.writing`, at the paths they will have in the workspace."""
    return execute_at(run, SharedSite(Place(root, scratch)), params, compute, scratch.folder)


def execute_at(run: StageRun, site: Site, params: Parameters, compute: Compute, storage: Path | str) -> Metrics:
    """Do the work of `run` where `site` says. Ray Train's own files go below `storage`, a folder or a URL."""

    def work(rank: int, world_size: int, on_save: OnSave) -> Metrics:
        torch.set_num_threads(compute.threads)
        with site.open(rank) as place:

            def saved(metrics: Mapping[str, float]) -> None:
                if rank == 0:
                    place.after_save()
                on_save(metrics)

            context = StageContext(
                place.scratch,
                seed=getattr(params, "seed", 0),
                arm=run.arm,
                device=device_of(compute),
                rank=rank,
                world_size=world_size,
                strategy=compute.strategy,
                on_save=saved,
            )
            discarded = Path(tempfile.mkdtemp(prefix="rank-")) if rank else None
            folder = discarded or place.scratch.writing
            inputs = {name: place.root / path for name, path in run.inputs.items()}
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
    return under_ray_train(work, compute, storage)


def under_ray_train(work: RankFunction, compute: Compute, storage: Path | str) -> Metrics:
    """Call `work(rank, world_size, on_save)` in Ray Train's workers and return what rank 0 returned.

    When a worker is lost, or the group cannot start, it starts again, up to `compute.max_failures` times; our own checkpoint
    store decides where it goes on. Each attempt is a Ray Train run with a new name, as Ray must not resume by itself, and must not
    try a user's mistake again.

    With `compute.min_workers` the group that starts again may be smaller: as large as the cluster's living nodes allow, and a
    divisor of `compute.workers`, so that every batch that divides among all divides among the rest. (Ray Train's own elastic
    groups, `num_workers=(least, most)`, come in any size, and a batch of 16 does not divide among 3.) Each worker's share of the
    global batch grows; rows and random numbers are drawn for the global batch, so the steps stay the same to rounding.
    """
    settle_environment()
    import ray

    started = compute.workers > 0 and not ray.is_initialized()
    if started:
        start_ray(compute)
    try:
        for failures in range(compute.max_failures + 1):
            workers = group_size(compute, grows=is_joined()) if compute.workers else 0
            if failures:
                print(f"starting again with {workers} worker(s)", flush=True)
            try:
                return _fit(work, compute, workers, storage)
            except Exception as error:  # the stage's own error is raised in place of Ray's wrapping
                cause, may_go_better = _cause(error)
                if not workers or failures == compute.max_failures or not may_go_better:
                    raise cause from error
                print(f"training with {workers} worker(s) broke off: {_line(cause)}", flush=True)
                free_places()
                settle_nodes()
    finally:
        if started:
            ray.shutdown()
    raise AssertionError("unreachable")


def _fit(work: RankFunction, compute: Compute, workers: int, storage: Path | str) -> Metrics:
    """One group of workers, from its start to its end."""
    import ray.train
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop() -> Metrics:
        logging.getLogger("ray.train").setLevel(logging.WARNING)  # else every report is a line
        train = ray.train.get_context()
        try:
            return work(train.get_world_rank(), train.get_world_size(), lambda metrics: ray.train.report(dict(metrics)))
        except LeftOnRequest:  # returned and not raised: Ray would start the workers again
            return LEFT

    local, on_gpu = workers == 0, wants_gpu(compute)
    shared = None if local else Storage(str(storage), timeout=5.0)
    files, path = shared.arrow("ray") if shared else (None, tempfile.gettempdir())
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    trainer = TorchTrainer(
        loop,
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=on_gpu,
            resources_per_worker=None if local else {"CPU": compute.threads, **({"GPU": 1} if on_gpu else {})},
        ),
        run_config=RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=path,
            storage_filesystem=files,
            # Ray starts nothing again by itself: it would with as many workers as before, on whatever nodes are left.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )
    try:
        returned = cast(Metrics, trainer.fit().return_value)
    finally:
        if shared:
            with suppress(InfrastructureError):  # litter, no reason to fail
                shared.delete("ray")
    if returned == LEFT:
        raise KeyboardInterrupt
    return returned


def _cause(error: BaseException) -> tuple[BaseException, bool]:
    """What to say of a group that broke off, and whether another may do better.

    That is InfrastructureError where processes were lost or could not start, and otherwise the stage's own error; a user's mistake
    is one again in another group.
    """
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, ControllerError):
        return InfrastructureError(f"the workers could not start: {_line(error.controller_failure)}"), True
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        error = max(error.worker_failures.values(), key=is_expected)
        # What ended a worker; the class that holds it is not public.
        error = getattr(error, "health_check_failure", error)
    if isinstance(error, RayActorError | OutOfMemoryError):
        return InfrastructureError(f"a process of the training was lost: {_line(error)}"), True
    return error, not is_expected(error)


def _line(error: BaseException) -> str:
    """Its beginning; of one that holds a traceback, the end."""
    text = str(error).strip()
    told = text.splitlines()[-1] if '\n  File "' in text else text
    return " ".join(told.split())[:160] or type(error).__name__
