"""How many stages run at once with `compute.backend: job`: heavy ones on the Ray cluster, the others here.

Ray would let jobs wait for each other, but not for long: a group of training workers that gets no resources within a minute is a
failure, and so is a job that has waited for 15. So a stage is submitted only if all that it reserves, its driver and its training
workers together, is free of the stages submitted before. What other users of the cluster take is not counted.
"""

import time
from collections.abc import Callable, Sequence

from pipelines.engine.ray_cluster import bundles_on, group_sizes, is_joined, require_bundles
from pipelines.errors import InfrastructureError
from pipelines.graph import StageRun
from pipelines.jobs.dashboard import Cluster, ClusterAwayError, Node, ResourceRequest, dashboard_address, resources_for
from pipelines.params import Parameters
from pipelines.scheduling.places import LocalPlaces, Places, in_ray_job, ray_workers

LOOK_SECONDS = 10.0
"""Between two looks at the cluster's nodes, which come and go."""


def places_for(params: Parameters, jobs: int | None = None) -> Places:
    """Return the places of `params.compute`; at most `jobs` stages at once, as many as fit by default."""
    return ClusterPlaces(params, jobs) if params.compute.backend == "job" else LocalPlaces(params, jobs)


class ClusterPlaces:
    """The cluster's CPUs and GPUs as bundles, of which each training worker, or a job without workers, takes one.

    All bundles are alike (`compute.threads` CPUs, and a GPU if the cluster has some), so whether one more can be placed depends on
    their number alone, wherever Ray has put the others. A driver of training workers reserves nothing.
    """

    def __init__(
        self,
        params: Parameters,
        jobs: int | None = None,
        connect: Callable[[str], Cluster] = Cluster,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.params = params
        self.jobs = jobs
        self.reserved = 1 if in_ray_job() else 0
        """Bundles of the job that this process is itself, in a submitted pipeline."""
        self.local = LocalPlaces(params, None if self.reserved else jobs)
        self._connect, self._clock = connect, clock
        self._cluster: Cluster | None = None
        self._nodes: list[Node] = []
        self._grows = False
        self._looked = 0.0
        self._once_possible: set[ResourceRequest] = set()

    def fits(self, run: StageRun, running: Sequence[StageRun]) -> bool:
        """Return whether `run` can start beside `running`.

        On a cluster with an autoscaler one stage more than it holds is submitted, for which it may add nodes.
        """
        if not run.stage.heavy and not self.local.fits(run, _light(running)):
            return False
        if not self._takes_bundles(run):
            return True
        self._look()
        there = [other for other in running if self._takes_bundles(other)]
        if run.stage.heavy and not self._grows and not self._possible(run, running):
            return False
        if not there:
            return True
        if self.jobs and len(there) >= self.jobs:
            return False
        free = self._total() - self.reserved - sum(map(self.bundles, there))
        return free >= (1 if self._grows else self.bundles(run))

    def environment(self, run: StageRun, running: Sequence[StageRun]) -> dict[str, str]:
        return {} if run.stage.heavy else self.local.environment(run, _light(running))

    def _look(self) -> None:
        """Read the cluster's nodes again, at most every LOOK_SECONDS; while it does not answer, what it had last."""
        if self._cluster is not None and self._clock() - self._looked < LOOK_SECONDS:
            return
        try:
            cluster = self._cluster or self._connect(dashboard_address(self.params.compute))
            self._nodes, self._grows = cluster.nodes(), cluster.grows()
            self._cluster = cluster
        except ClusterAwayError:
            if self._cluster is None:
                raise
        self._looked = self._clock()

    def _takes_bundles(self, run: StageRun) -> bool:
        return run.stage.heavy or (run.stage.starts_workers and is_joined())

    def _need(self, run: StageRun) -> ResourceRequest:
        return resources_for(run.stage.trains, self.params.compute, self._nodes)

    def _total(self) -> int:
        need = resources_for(False, self.params.compute, self._nodes)
        return sum(bundles_on(node.resources, need.cpus, need.gpus) for node in self._nodes)

    def bundles(self, run: StageRun) -> int:
        """Return how many bundles `run` takes: with `min_workers`, as large a group as the cluster holds.

        The workers of train_parity are smaller than a bundle; they are counted as if they were not.
        """
        if not (run.stage.trains and self.params.compute.workers):
            return ray_workers(run, self.params) or 1
        sizes = group_sizes(self.params.compute)
        return next((size for size in sizes if size <= self._total() - self.reserved), sizes[-1])

    def _possible(self, run: StageRun, running: Sequence[StageRun]) -> bool:
        """Return whether the cluster could hold `run` if it were idle.

        While anything runs, nodes that were lost may come back. Raises InfrastructureError if it never could, or nothing runs.
        """
        need, resources = self._need(run), [node.resources for node in self._nodes]
        assert self._cluster is not None
        beside = " beside this job itself" if self.reserved else ""
        who = f"{run.address}: the cluster at {self._cluster.address}{beside}"
        try:
            require_bundles(need.minimum + self.reserved, need.cpus, need.gpus, resources, who)
        except InfrastructureError:
            if need in self._once_possible and running:
                return False
            raise
        self._once_possible.add(need)
        return True


def _light(runs: Sequence[StageRun]) -> list[StageRun]:
    return [run for run in runs if not run.stage.heavy]
