"""Runs a stage function: in this process, or as a training run under Ray Train.

A training stage always goes through Ray Train. With `compute.workers: 0` that is its local mode: the same function, called in this
process, at 0.1 s instead of the 10 to 20 s that starting worker processes takes. With workers, every rank runs the stage function;
ranks above 0 write into a folder that is deleted, so that stage code need not handle ranks.
"""

import importlib
import logging
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from components.errors import ParameterError
from components.files import remove
from components.training.config import TrainingConfig
from components.training.loop import StopRequested
from pipelines.engine.context import StageContext
from pipelines.engine.ray_cluster import (
    device_of,
    group_size,
    is_joined,
    ray_session,
    remove_placement_groups,
    set_ray_defaults,
    wait_for_dead_nodes,
    wants_gpu,
)
from pipelines.engine.warm import silence_import_notices
from pipelines.errors import TRY_AGAIN, InfrastructureError, exit_code, is_expected, one_line
from pipelines.graph import StageRun
from pipelines.locks.retrying import ProcessLostError, RetryBudget
from pipelines.params import ParameterFile
from pipelines.records.stage_record import hardware
from pipelines.schema.running import Compute
from pipelines.schema.section import Section
from pipelines.scratch.folder import Scratch
from pipelines.scratch.spent import WorkerGroup
from pipelines.scratch.storage import Storage

Metrics = dict[str, Any]
OnSave = Callable[[Mapping[str, float]], None]
RankFunction = Callable[[int, int, OnSave], Metrics]
"""(rank, world size, what to call after a save) -> metrics."""
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "ncclRemoteError", "ncclSystemError")
"""What gloo and NCCL say on the ranks whose peer is gone, which may be known before Ray misses that one."""
STOPPED: Metrics = {"stopped": True}
"""Returned by a worker that saved a checkpoint and stopped on request."""


class StageFunction(Protocol):
    """The function `run` in a stage's file: takes typed parameters and paths, writes outputs, returns metrics."""

    def __call__(
        self, params: ParameterFile, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
    ) -> Metrics: ...


@dataclass(frozen=True)
class RankFolders:
    """The folders of one rank: inputs below `root` at their paths in the workspace, everything else in `scratch`.

    `after_save` is called by rank 0 when it has saved a checkpoint, `begun` when it has begun.
    """

    root: Path
    scratch: Scratch
    after_save: Callable[[], None] = lambda: None
    begun: Callable[[WorkerGroup], None] = lambda group: None


FolderSource = Callable[[int], AbstractContextManager[RankFolders]]
"""Opens the folders of a rank, in the process of that rank."""


def stage_function(run: StageRun) -> StageFunction:
    """Import the stage's file and all it needs, and return its function."""
    silence_import_notices()
    return cast(StageFunction, importlib.import_module(f"pipelines.stages.{run.stage.name}").run)


def execute(
    run: StageRun, open_folders: FolderSource, params: ParameterFile, compute: Compute, storage: Path | str
) -> Metrics:
    """Call the stage function of `run` and return its metrics, under Ray Train if it trains.

    Outputs are written below `writing` in the scratch folder, at their paths in the workspace. Ray Train's own files go below
    `storage`, a folder or a URL.
    """

    def on_rank(rank: int, world_size: int, on_save: OnSave) -> Metrics:
        torch.set_num_threads(compute.threads)
        with open_folders(rank) as folders:

            def saved(metrics: Mapping[str, float]) -> None:
                if rank == 0:
                    folders.after_save()
                on_save(metrics)

            device = device_of(compute)
            if rank == 0:
                folders.begun(_group(world_size, device, by_ray=bool(run.stage.trains and compute.workers)))
            context = StageContext(
                folders.scratch,
                seed=getattr(params, "seed", 0),
                arm=run.arm,
                device=device,
                rank=rank,
                world_size=world_size,
                strategy=compute.strategy,
                offload=compute.offload,
                on_save=saved,
            )
            discarded = Path(tempfile.mkdtemp(prefix="rank-")) if rank else None
            if rank == 0:
                remove(folders.scratch.writing)  # half outputs of a group of workers that was lost
            written = discarded or folders.scratch.writing
            inputs = {name: folders.root / path for name, path in run.inputs.items()}
            outputs = {name: written / path for name, path in run.outputs.items()}
            for path in outputs.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return stage_function(run)(params, inputs, outputs, context)
            finally:
                if discarded:
                    shutil.rmtree(discarded, ignore_errors=True)

    if not run.stage.trains:
        return on_rank(0, 1, lambda metrics: None)
    require_even_batches(getattr(params, run.stage.name), run.stage.name, compute.workers)
    return under_ray_train(on_rank, compute, storage)


def _group(world_size: int, device: torch.device, *, by_ray: bool) -> WorkerGroup:
    """Describe the workers that compute, in the process of rank 0: the driver of a cluster may have no GPU, or another one."""
    machine = hardware() if by_ray else {}
    if by_ray and device.type == "cuda":
        machine = {**machine, "gpu": f"{world_size} x {torch.cuda.get_device_name(device)}"}
    return WorkerGroup(workers=world_size, device=device.type, hardware=machine)


def require_even_batches(section: Section, name: str, workers: int) -> None:
    """Raise ParameterError, before any worker starts, where a batch of the section `name` does not divide among them."""
    for key, training in section:
        if isinstance(training, TrainingConfig) and training.batch % (max(workers, 1) * training.accumulate):
            raise ParameterError(
                f"{name}.{key}.batch = {training.batch}: must be a multiple of compute.workers = {max(workers, 1)} x "
                f"accumulate = {training.accumulate}"
            )


def under_ray_train(function: RankFunction, compute: Compute, storage: Path | str) -> Metrics:
    """Call `function` in every worker of a Ray Train run and return the metrics of rank 0.

    When a worker, its storage or memory is lost, or the group cannot start, a new group is started, up to `compute.max_failures`
    times; our own checkpoint store decides where it resumes. Each attempt is a Ray Train run with a new name, because Ray must
    neither resume by itself nor retry a user's mistake or a bug.

    With `compute.min_workers` the new group may be smaller: as large as the cluster's living nodes allow, and a divisor of
    `compute.workers`, so that every batch that divides among all divides among the rest. (Ray Train's own elastic groups,
    `num_workers=(min, max)`, come in any size, and a batch of 16 does not divide among 3.) Each worker's part of the global batch
    grows; rows and random numbers are drawn for the global batch, so the steps stay the same to rounding.
    """
    set_ray_defaults()
    budget = RetryBudget(compute.max_failures if compute.workers else 0)
    with ray_session(compute) if compute.workers else nullcontext():
        while True:
            workers = group_size(compute, grows=is_joined()) if compute.workers else 0
            if budget.failures:
                print(f"starting again with {workers} worker(s)", flush=True)
            try:
                return _fit(function, compute, workers, storage)
            except Exception as error:  # of any kind: `spend` raises what is not tried again
                cause = _cause(error)
                budget.spend(cause)
                print(f"training with {workers} worker(s) broke off: {one_line(cause)}", flush=True)
                remove_placement_groups()
                wait_for_dead_nodes()


def _fit(function: RankFunction, compute: Compute, workers: int, storage: Path | str) -> Metrics:
    """Run one group of workers from start to end."""
    import ray.train
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop() -> Metrics:
        logging.getLogger("ray.train").setLevel(logging.WARNING)  # else every report is a line
        train = ray.train.get_context()
        try:
            return function(train.get_world_rank(), train.get_world_size(), lambda m: ray.train.report(dict(m)))
        except StopRequested:  # returned and not raised: Ray would report it as a failure
            return STOPPED

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
            with suppress(InfrastructureError):  # leftover files are no reason to fail
                shared.delete("ray")
    if returned == STOPPED:
        raise KeyboardInterrupt
    return returned


def _cause(error: BaseException) -> BaseException:
    """Return ProcessLostError where workers were lost or could not start, else the stage's own error without Ray's wrapping.

    Ranks fail because of another one, so of several errors that of a user's mistake comes first, then what was lost, then a bug,
    and last that a peer has gone.
    """
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, ControllerError):
        return ProcessLostError(f"the workers could not start: {one_line(error.controller_failure)}")
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        # What ended a worker; the class that holds it is not public.
        found = [getattr(failure, "health_check_failure", failure) for failure in error.worker_failures.values()]
        error = min(found, key=_order)
    if _is_gone(error) or _misses_peer(error):
        return ProcessLostError(f"a process of the training was lost: {one_line(error)}")
    return error


def _order(error: BaseException) -> int:
    if _misses_peer(error):
        return 3
    if _is_gone(error) or exit_code(error) == TRY_AGAIN:
        return 1
    return 0 if is_expected(error) else 2


def _is_gone(error: BaseException) -> bool:
    from ray.exceptions import OutOfMemoryError, RayActorError

    return isinstance(error, RayActorError | OutOfMemoryError)


def _misses_peer(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in LOST_PEER)
