"""Ray as this project starts it, and what a process computes on."""

import json
import math
import os
import socket
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipelines.errors import InfrastructureError
from pipelines.identity.closure import ROOT
from pipelines.params import Compute

if TYPE_CHECKING:
    import torch

NOTICE_SECONDS = 90.0
"""For Ray to give up a node that is gone: some 15 s where its process was killed, 65 s where its machine does not answer."""


def settle_environment() -> None:
    """Ray's settings, before its import. Each may be overridden from outside."""
    defaults = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # report() waits for this poll; 2 s by default
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line of a worker is printed twice
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # Workers import this checkout's code, whatever is installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def start_ray(compute: Compute) -> None:
    """Connect to the cluster at RAY_ADDRESS, or start one on this machine that nobody else can reach.

    What workers print stays in Ray's logs: errors come back as exceptions, metrics through the log of the run.
    """
    import ray

    if is_joined():
        ray.init(log_to_driver=False)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # loopback only; token mode would write to the home directory
    cpus = max(os.cpu_count() or 1, compute.workers * compute.threads)
    ray.init(num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)


def is_joined() -> bool:
    """Whether Ray is the cluster at RAY_ADDRESS (a job's own is there), and not one that was started here."""
    return bool(os.environ.get("RAY_ADDRESS"))


def uses_gpu(compute: Compute) -> bool:
    """Whether this process computes on a GPU."""
    import torch

    return compute.device == "cuda" or (compute.device == "auto" and torch.cuda.is_available())


def wants_gpu(compute: Compute) -> bool:
    """Whether training workers ask for a GPU each: the cluster may have some where this process has none."""
    import ray

    if compute.workers and compute.device == "auto" and ray.is_initialized():
        return bool(ray.cluster_resources().get("GPU"))
    return uses_gpu(compute)


def device_of(compute: Compute) -> "torch.device":
    import torch

    if not uses_gpu(compute):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def group_size(compute: Compute, *, grows: bool) -> int:
    """How many training workers to start: `compute.workers`; with `min_workers` as many as fit, in divisors of it.

    Raises InfrastructureError when the cluster can never hold them, unless it `grows` and has an autoscaler that may add nodes.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = 1 if wants_gpu(compute) else 0
    fit = sum(places(node, compute.threads, gpus) for node in nodes)
    least = compute.min_workers or compute.workers
    sizes = [size for size in range(compute.workers, 0, -1) if compute.workers % size == 0 and size >= least]
    for size in sizes:
        if size <= fit:
            return size
    if grows and _has_autoscaler():
        return sizes[0]
    require_places(sizes[-1], compute.threads, gpus, nodes, "this Ray cluster")
    return sizes[-1]


def settle_nodes() -> None:
    """Wait until every node that Ray believes alive can be reached, but no longer than NOTICE_SECONDS.

    A node that was lost a moment ago still counts as alive: a group that is started then waits in vain for its place there.
    """
    import ray

    deadline = time.monotonic() + NOTICE_SECONDS
    said = False
    while time.monotonic() < deadline:
        silent = next((node for node in ray.nodes() if node["Alive"] and not _answers(node)), None)
        if silent is None:
            return
        if not said:
            said = True
            print(f"node {silent['NodeID'][:8]} does not answer: waiting for Ray to give it up", flush=True)
        time.sleep(0.5)


def free_places() -> None:
    """Remove this program's placement groups, and with them what still works there.

    A group's controller does so when the group breaks off, but not when it was ended too, by Ray's memory monitor, say, which ends
    several processes of a node at once. The places would be held until this program ends, and no other group could start.
    """
    import ray
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    own = ray.get_runtime_context().get_job_id()  # which is the end of each id that belongs to it
    for identity, group in placement_group_table().items():
        if group["state"] != "REMOVED" and identity.endswith(own):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identity))))


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=2).close()
    except OSError:
        return False
    return True


def places(resources: Mapping[str, float], cpus: int, gpus: int) -> int:
    """How many bundles of `cpus` and `gpus` a node with these resources holds."""
    by_cpu = math.floor(resources.get("CPU", 0) / cpus)
    return min(by_cpu, math.floor(resources.get("GPU", 0) / gpus)) if gpus else by_cpu


def require_places(least: int, cpus: int, gpus: int, nodes: Iterable[Mapping[str, float]], cluster: str) -> None:
    """Raise InfrastructureError, naming the resource, unless `nodes`, were they idle, hold `least` bundles of `cpus` and `gpus`."""
    nodes = list(nodes)
    if sum(places(node, cpus, gpus) for node in nodes) >= least:
        return
    short = "GPUs" if gpus and sum(places(node, cpus, 0) for node in nodes) >= least else "CPUs"
    has = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes) or "no node"
    asked = f"{least} x ({cpus} CPUs" + (f", {gpus} GPU)" if gpus else ")")
    raise InfrastructureError(
        f"{cluster} can never give {asked}: it lacks {short}, its nodes have {has}; lower compute.workers, min_workers or "
        "threads, or set compute.device"
    )


def adds_nodes(report: Mapping[str, object] | None) -> bool:
    """Whether a Ray autoscaler's report is of one that may add nodes. Without a cloud it gives each node a type of its own.

    No report at all is what the second generation of the autoscaler leaves here, so that nothing is known: then it may.
    """
    if not report:
        return True
    types = report.get("node_type_mapping") or report.get("nodeTypeMapping") or {}
    assert isinstance(types, Mapping)
    return any(kind != f"node_{node}" for node, kind in types.items())


def _has_autoscaler() -> bool:
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    found = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    return adds_nodes(json.loads(found).get("autoscaler_report") if found else None)
