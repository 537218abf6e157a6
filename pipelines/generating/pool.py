"""Draws shards in this process or in Ray actors that each hold the model. A lost actor costs the time of its shard.

A pool of its own: unlike the processes of a study (`studies/workers.py`), actors may be on other nodes and reserve a GPU each, or
share those of this machine.
"""

import math
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.engine.ray_cluster import is_joined, ray_session, uses_gpu
from pipelines.errors import InfrastructureError, one_line
from pipelines.generating.painter import DrawnShard, DrawSettings, Painter
from pipelines.generating.plan import Shard
from pipelines.locks.retrying import ProcessLostError, RetryBudget
from pipelines.schema.running import Compute

START_TIMEOUT = 120.0
"""Seconds within which Ray must start an actor; importing torch takes 20 on a busy machine."""


def draw(
    drawing: DrawSettings, folder: Path, shards: Sequence[Shard], compute: Compute
) -> Generator[tuple[Shard, DrawnShard], None, None]:
    """Draw `shards` into `folder` and yield each when its file is written; with workers, in any order.

    Closing the iterator ends the actors, and Ray if it was started here. Raises what a painter raises, and InfrastructureError if
    more than `compute.max_failures` actors die, or none can be started.
    """
    if not shards:
        return
    if compute.workers == 0:
        painter = Painter(drawing, folder, compute)
        try:
            for shard in shards:
                yield shard, painter.draw(shard)
        finally:
            painter.close()
    else:
        yield from draw_with_ray(Painter, (drawing, folder.absolute(), compute), shards, compute)


def draw_with_ray(
    painter: type, arguments: tuple[Any, ...], shards: Sequence[Shard], compute: Compute
) -> Generator[tuple[Shard, DrawnShard], None, None]:
    """Draw `shards` with `painter(*arguments)` in each of `compute.workers` actors."""
    with ray_session(compute):
        pool = _Pool(painter, arguments, compute)
        try:
            yield from pool.draw(shards)
        finally:
            pool.stop()


def gpu_share(workers: int, gpus: float) -> float:
    """Return the part of a GPU that each worker reserves: all of one, or a fraction where there are more workers than GPUs.

    On a cluster that may add nodes, workers wait for GPUs of their own.
    """
    if is_joined() or not 0 < gpus < workers:
        return 1.0
    return 1 / math.ceil(workers / gpus)


class _Pool:
    """Actors and their tasks. An actor gets a shard only once it has started."""

    def __init__(self, painter: type, arguments: tuple[Any, ...], compute: Compute) -> None:
        import ray

        gpus = gpu_share(compute.workers, ray.cluster_resources().get("GPU", 0)) if uses_gpu(compute) else 0
        self._actor_class = ray.remote(num_cpus=compute.threads, num_gpus=gpus, max_restarts=0)(painter)
        self._arguments, self._compute = arguments, compute
        # By object reference of the task: (actor, its shard; None while it starts).
        self._running: dict[Any, tuple[Any, Shard | None]] = {}
        self._budget = RetryBudget(compute.max_failures)

    def draw(self, shards: Sequence[Shard]) -> Generator[tuple[Shard, DrawnShard], None, None]:
        import ray

        todo = deque(shards)
        for _ in range(min(self._compute.workers, len(todo))):
            self._start()
        deadline = time.monotonic() + START_TIMEOUT
        while todo or any(shard for _, shard in self._running.values()):
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=1.0)
            if not ready:
                self._check_deadline(deadline)
                continue
            deadline = time.monotonic() + START_TIMEOUT
            actor, shard = self._running.pop(ready[0])
            try:
                drawn = ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error  # the painter's own error, in place of Ray's wrapping
            except ray.exceptions.RayError as error:
                if shard:
                    todo.appendleft(shard)
                self._remove_dead(actor, error)
                if todo:
                    self._start()
                continue
            if todo:
                following = todo.popleft()
                self._running[actor.draw.remote(following)] = actor, following
            else:
                ray.kill(actor)
            if shard:
                yield shard, drawn

    def stop(self) -> None:
        import ray

        for actor, _ in self._running.values():
            with suppress(Exception):  # it may be dead already, or Ray stopped
                ray.kill(actor)
        self._running.clear()

    def _start(self) -> None:
        actor = self._actor_class.remote(*self._arguments)
        self._running[actor.ready.remote()] = actor, None

    def _remove_dead(self, actor: Any, error: Exception) -> None:
        import ray

        reason = one_line(error)
        died = f"{self._budget.failures + 1} workers died, the last with: {reason}"
        self._budget.spend(ProcessLostError(f"{died}; finished shards are kept, run the command again"))
        print(f"a worker died ({self._budget.failures} of at most {self._budget.policy.retries}): {reason}", flush=True)
        with suppress(Exception):  # an unreachable actor may be alive: it must not draw beside its replacement
            ray.kill(actor)

    def _check_deadline(self, deadline: float) -> None:
        """Raise InfrastructureError if no actor has started by the deadline and none draws."""
        import ray

        if time.monotonic() < deadline or any(shard for _, shard in self._running.values()):
            return
        needs = f"{self._compute.threads} CPUs" + (" and a GPU, or a part of one," if uses_gpu(self._compute) else "")
        raise InfrastructureError(
            f"no worker could be started in {START_TIMEOUT:.0f} s: each needs {needs}, Ray has {ray.available_resources()}"
        )
