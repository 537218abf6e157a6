"""Who draws: this process, or actors of Ray that each hold the model. Shards are whole, so a lost actor costs its shard's time."""

import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.engine.ray_cluster import ray_session, uses_gpu
from pipelines.errors import InfrastructureError, one_line
from pipelines.generating.painter import Drawing, Drawn, Painter
from pipelines.generating.plan import Shard
from pipelines.locks.retrying import ProcessLostError, RetryBudget
from pipelines.schema.running import Compute

START_TIMEOUT = 120.0
"""Seconds in which Ray must have started one actor: a busy machine takes 20 to import torch."""


def draw(
    drawing: Drawing, folder: Path, shards: Sequence[Shard], compute: Compute
) -> Generator[tuple[Shard, Drawn], None, None]:
    """Draw `shards` into `folder`, and tell of each when its file is whole; with workers, in any order.

    Close the iterator to stop: it ends the actors, and Ray if it started it. Raises what a painter raises, and InfrastructureError
    when more than `compute.max_failures` actors have died, or none can be started.
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
) -> Generator[tuple[Shard, Drawn], None, None]:
    """The same by `painter(*arguments)`, one in each of `compute.workers` actors."""
    with ray_session(compute):
        pool = _Pool(painter, arguments, compute)
        try:
            yield from pool.draw(shards)
        finally:
            pool.stop()


class _Pool:
    """Actors, and what each is doing. A shard is given to an actor only once the actor lives."""

    def __init__(self, painter: type, arguments: tuple[Any, ...], compute: Compute) -> None:
        import ray

        gpus = 1 if uses_gpu(compute) else 0
        self._make = ray.remote(num_cpus=compute.threads, num_gpus=gpus, max_restarts=0)(painter)
        self._arguments, self._compute = arguments, compute
        # By what is promised: (actor, its shard; None while it starts).
        self._doing: dict[Any, tuple[Any, Shard | None]] = {}
        self._budget = RetryBudget(compute.max_failures)

    def draw(self, shards: Sequence[Shard]) -> Generator[tuple[Shard, Drawn], None, None]:
        import ray

        todo = deque(shards)
        for _ in range(min(self._compute.workers, len(todo))):
            self._start()
        deadline = time.monotonic() + START_TIMEOUT
        while todo or any(shard for _, shard in self._doing.values()):
            promises, _ = ray.wait(list(self._doing), num_returns=1, timeout=1.0)
            if not promises:
                self._refuse_to_wait_for_ever(deadline)
                continue
            deadline = time.monotonic() + START_TIMEOUT
            actor, shard = self._doing.pop(promises[0])
            try:
                drawn = ray.get(promises[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error  # the painter's own error, in place of Ray's wrapping
            except ray.exceptions.RayError as error:
                if shard:
                    todo.appendleft(shard)
                self._bury(actor, error)
                if todo:
                    self._start()
                continue
            if todo:
                following = todo.popleft()
                self._doing[actor.draw.remote(following)] = actor, following
            else:
                ray.kill(actor)
            if shard:
                yield shard, drawn

    def stop(self) -> None:
        import ray

        for actor, _ in self._doing.values():
            with suppress(Exception):  # it may be dead already, or Ray gone: all that matters is that nothing goes on
                ray.kill(actor)
        self._doing.clear()

    def _start(self) -> None:
        actor = self._make.remote(*self._arguments)
        self._doing[actor.ready.remote()] = actor, None

    def _bury(self, actor: Any, error: Exception) -> None:
        import ray

        reason = one_line(error)
        died = f"{self._budget.failures + 1} workers died, the last with: {reason}"
        self._budget.spend(ProcessLostError(f"{died}; finished shards are kept, run the command again"))
        print(f"a worker died ({self._budget.failures} of at most {self._budget.retries}): {reason}", flush=True)
        with suppress(Exception):  # unreachable is not dead: it must not draw beside its successor
            ray.kill(actor)

    def _refuse_to_wait_for_ever(self, deadline: float) -> None:
        """While nobody draws, somebody must be starting."""
        import ray

        if time.monotonic() < deadline or any(shard for _, shard in self._doing.values()):
            return
        needs = f"{self._compute.threads} CPUs" + (" and a GPU" if uses_gpu(self._compute) else "")
        raise InfrastructureError(
            f"no worker could be started in {START_TIMEOUT:.0f} s: each needs {needs}, Ray has {ray.available_resources()}"
        )
