"""How many stages run at once on this machine; `cluster_places` is about a Ray cluster."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

from components.errors import ParameterError
from pipelines.engine.ray_cluster import is_joined
from pipelines.graph import StageRun
from pipelines.params import ParameterFile
from pipelines.records.stage_record import ray_ids
from pipelines.scheduling.gpus import usable_gpus
from pipelines.threads.cores import usable_cores


class Places(Protocol):
    """Decides whether one more stage run can start."""

    def fits(self, run: StageRun, running: Sequence[StageRun]) -> bool:
        """Return whether `run` can start beside `running`; with nothing running it always can.

        Raises InfrastructureError, naming the run and the numbers, when it can never be given what it needs.
        """

    def environment(self, run: StageRun, running: Sequence[StageRun]) -> dict[str, str]:
        """Return variables for the environment of `run`, which starts now beside `running`."""


def ray_workers(run: StageRun, params: ParameterFile) -> int:
    """Return how many Ray workers `run` starts; 0 if it computes in its own process."""
    if run.stage.starts_workers:
        return int(getattr(params, run.stage.name).workers)
    return params.compute.workers if run.stage.trains else 0


def in_ray_job() -> bool:
    """Return whether this process is a Ray job."""
    return bool(ray_ids().get("submission"))


class LocalPlaces:
    """This machine: `jobs` places of `compute.threads` threads each, and each GPU for one stage at a time.

    A stage that starts Ray workers here counts them in place of itself, as it waits for them. Workers on a cluster that this
    machine has joined (RAY_ADDRESS) take nothing here; as the size of that cluster is not known, one such stage runs at a time.
    A Ray job (a submitted pipeline) has reserved the cores of one stage, and not this machine.
    """

    def __init__(self, params: ParameterFile, jobs: int | None = None) -> None:
        if jobs is not None and jobs < 1:
            raise ParameterError(f"--jobs {jobs}: must be at least 1")
        self.params = params
        self.jobs = jobs or (1 if in_ray_job() else max(1, usable_cores() // params.compute.threads))
        self._given: dict[str, list[str]] = {}  # address -> GPUs

    @cached_property
    def gpus(self) -> tuple[str, ...]:
        """Found when the first stage starts: the driver takes a second to say."""
        return usable_gpus() if self.params.compute.device != "cpu" else ()

    def fits(self, run: StageRun, running: Sequence[StageRun]) -> bool:
        if not running:
            return True
        if self._on_joined_cluster(run) and any(map(self._on_joined_cluster, running)):
            return False
        together = [*running, run]
        enough_gpus = not self.gpus or sum(map(self._gpus, together)) <= len(self.gpus)
        return enough_gpus and sum(map(self._places, together)) <= self.jobs

    def environment(self, run: StageRun, running: Sequence[StageRun]) -> dict[str, str]:
        if not self.gpus or not self._gpus(run):
            return {}
        addresses = {other.address for other in running}
        self._given = {address: gpus for address, gpus in self._given.items() if address in addresses}
        busy = {gpu for gpus in self._given.values() for gpu in gpus}
        self._given[run.address] = [gpu for gpu in self.gpus if gpu not in busy][: self._gpus(run)]
        return {"CUDA_VISIBLE_DEVICES": ",".join(self._given[run.address])}

    def _on_joined_cluster(self, run: StageRun) -> bool:
        return is_joined() and ray_workers(run, self.params) > 0

    def _places(self, run: StageRun) -> int:
        workers = 0 if is_joined() else ray_workers(run, self.params)
        if run.stage.starts_workers:  # of one thread each
            workers = math.ceil(workers / self.params.compute.threads)
        return max(1, workers)

    def _gpus(self, run: StageRun) -> int:
        workers = ray_workers(run, self.params)
        if self._on_joined_cluster(run):
            return 0
        if run.stage.starts_workers and workers > len(self.gpus):  # it then computes on the CPU, wherever it runs
            return 1
        return min(max(1, workers), len(self.gpus))
