"""The resources of a trial: what it takes of a cluster, how many trials fit at once, and the GPUs that count towards a budget."""

from collections.abc import Iterable, Mapping

from components.errors import ParameterError
from pipelines.graph import StageRun
from pipelines.jobs.dashboard import Cluster, dashboard_address, resources_for
from pipelines.schema.running import Compute
from pipelines.sweeps.spaces import Resources


def needs(compute: Compute, resources: Resources, on_gpu: bool) -> dict[str, float]:
    """Return the resources of one trial: of its own process, or of Ray Train's workers. None where stages are jobs."""
    if compute.backend == "job":
        return {}
    if compute.workers:
        found = {"CPU": float(compute.workers * compute.threads), "GPU": float(compute.workers) if on_gpu else 0.0}
    else:
        found = {"CPU": float(resources.cpus or compute.threads), "GPU": resources.gpus if on_gpu else 0.0}
    return {name: amount for name, amount in found.items() if amount}


def slots(need: Mapping[str, float], available: Mapping[str, float], asked: int) -> int:
    """Return how many trials may run at once: `asked`, or as many as fit. Raises ParameterError, naming the resource, for none.

    More would wait forever for each other's workers: Tune does not know the resources that a trial's own driver requests.
    """
    for name, amount in need.items():
        if amount > (have := available.get(name, 0.0)):
            raise ParameterError(
                f"a trial needs {amount:g} {name}, the cluster has {have:g}: "
                "lower compute.workers, compute.threads or the space's resources"
            )
        asked = min(asked, int((have + 1e-9) // amount))
    return asked


def computes_on_gpu(compute: Compute) -> bool:
    """Return whether the trials of this process's Ray compute on a GPU."""
    import ray

    return compute.device == "cuda" or (compute.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)


def budgeted_gpus(hours: float, compute: Compute, resources: Resources, stages: Iterable[StageRun]) -> float:
    """Return the GPUs of a trial with these stages: as `needs`, or those of its largest job.

    A Ray that is not started yet is taken to have GPUs, until `require_gpu` looks. Raises ParameterError where a trial takes none:
    a budget of GPU hours would have no end.
    """
    if compute.backend == "local":
        gpus = needs(compute, resources, compute.device != "cpu").get("GPU", 0.0)
    else:
        nodes = Cluster(dashboard_address(compute)).nodes() if compute.device == "auto" else []
        jobs = [resources_for(run.stage.trains, compute, nodes) for run in stages if run.stage.heavy]
        gpus = max((float(job.bundles * job.gpus) for job in jobs), default=0.0)
    if gpus:
        return gpus
    if compute.device == "cpu":
        raise _without_gpu(hours, "compute.device is cpu")
    if compute.backend == "local":
        raise _without_gpu(hours, "set resources.gpus in the search space, or compute.workers")
    raise _without_gpu(hours, "none of its stages is a job on a GPU of the cluster")


def require_gpu(hours: float | None, compute: Compute) -> None:
    """Raise ParameterError for a budget of GPU hours where the Ray of this process, which trials run on, has no GPU."""
    if hours is not None and compute.backend == "local" and not computes_on_gpu(compute):
        raise _without_gpu(hours, "the Ray cluster has none")


def _without_gpu(hours: float, reason: str) -> ParameterError:
    return ParameterError(f"--budget-gpu-hours {hours:g}: a trial takes no GPU: {reason}")
