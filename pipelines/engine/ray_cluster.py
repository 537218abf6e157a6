"""Starting Ray and choosing devices: settings, the size of a worker group, what a cluster can hold."""

import json
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipelines.engine.socket_folder import socket_folder
from pipelines.errors import InfrastructureError, one_line
from pipelines.identity.closure import ROOT
from pipelines.schema.running import Compute
from pipelines.threads.cores import usable_cores
from pipelines.threads.settings import waiting_settings

if TYPE_CHECKING:
    import torch

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's environment variable that, if "0", makes 127.0.0.1 the address of this machine, for who starts Ray and who joins it."""
ANSWER_SECONDS = 5.0
"""Within which the head at RAY_ADDRESS must accept a connection; Ray itself tries for minutes, and prints its C++ errors."""
NOTICE_SECONDS = 90.0
"""Ray declares a dead node dead after some 15 s where its process was killed, 65 s where its machine does not answer."""


def ray_defaults() -> dict[str, str]:
    """Return Ray's environment variables, which must be set before its import; values that are set already are kept."""
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
    session = "/ray/session_2026-01-01_00-00-00_123456_1234567/sockets/plasma_store"
    if (folder := socket_folder(len(session))) != tempfile.gettempdir():
        defaults["RAY_TMPDIR"] = folder
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def set_ray_defaults() -> None:
    """Set Ray's environment variables."""
    os.environ.update(ray_defaults())
    os.environ.update(waiting_settings())  # Ray's processes on this machine inherit it
    # Workers import this checkout's code, whatever is installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def start_ray(compute: Compute) -> None:
    """Connect to the cluster at RAY_ADDRESS, or start one on this machine that nobody else can reach, whatever other Ray runs here.

    What workers print stays in Ray's logs: errors come back as exceptions, metrics through the log of the run. Raises
    InfrastructureError when no cluster answers at RAY_ADDRESS, or none can be started.
    """
    import ray

    if is_joined():
        address = os.environ["RAY_ADDRESS"]
        _require_answer(address)
        if os.environ.get(LOOPBACK) == "0":
            _stay_on_loopback()
        try:
            ray.init(log_to_driver=False, runtime_env={"env_vars": _worker_variables()})
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InfrastructureError(f"RAY_ADDRESS = {address}: cannot be joined: {one_line(error)}") from error
        return
    _stay_on_loopback()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # loopback only; token mode would write to the home directory
    cpus = max(usable_cores(), compute.workers * compute.threads)
    try:  # "local": without it, Ray joins any other that was started on this machine
        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    except Exception as error:  # of just that type: its processes did not answer within 30 s
        if type(error) is not Exception and not isinstance(error, RuntimeError | OSError):
            raise
        raise InfrastructureError(
            f"Ray could not be started on this machine: {one_line(error)}; run again, when fewer processes compete for its CPUs"
        ) from error


def _stay_on_loopback() -> None:
    """Let Ray take 127.0.0.1 for the address of this machine, and listen on no other.

    `ray.init` cannot be told so: of a loopback address that it is given, it makes one that others can reach.
    """
    from ray._private import ray_constants

    os.environ[LOOPBACK] = "0"  # for Ray's processes
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read the variable already


def variables_to_join() -> dict[str, str]:
    """Return environment variables with which another process on this machine joins the Ray of this process."""
    import ray

    found = {"RAY_ADDRESS": str(ray.get_runtime_context().gcs_address)}
    if LOOPBACK in os.environ:
        found[LOOPBACK] = os.environ[LOOPBACK]
    return found


@contextmanager
def ray_session(compute: Compute) -> Iterator[None]:
    """Use Ray as it runs in this process, or else start it for the duration of the block."""
    set_ray_defaults()
    import ray

    if ray.is_initialized():
        yield
        return
    start_ray(compute)
    try:
        yield
    finally:
        ray.shutdown()


def is_joined() -> bool:
    """Return whether Ray is the cluster at RAY_ADDRESS (a job's own is there), and not one that was started here.

    An http address is that of a dashboard: jobs go there, and processes cannot join it.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    return address not in ("", "local") and not address.startswith(("http://", "https://"))


def _worker_variables() -> dict[str, str]:
    """Return environment variables for this program's workers on all nodes, but for those of the Ray job that this process is in.

    Ray gives the job's to the workers itself, and refuses a variable that is set twice.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    of_job = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in waiting_settings().items() if name not in of_job}


def _require_answer(address: str) -> None:
    """Raise InfrastructureError unless a head accepts connections at `address`: host:port, ray://host:port, or "auto"."""
    from ray._private.services import find_bootstrap_address

    found = find_bootstrap_address(None) if address == "auto" else address.removeprefix("ray://")
    host, _, port = (found or "").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        reason = "no Ray was started on this machine" if found is None else f"{found}: {one_line(error)}"
        raise InfrastructureError(
            f"RAY_ADDRESS = {address}: no Ray cluster answers ({reason}); start it, or unset RAY_ADDRESS to use this machine alone"
        ) from error


def uses_gpu(compute: Compute) -> bool:
    """Return whether this process computes on a GPU."""
    import torch

    return compute.device == "cuda" or (compute.device == "auto" and torch.cuda.is_available())


def wants_gpu(compute: Compute) -> bool:
    """Return whether each training worker asks for a GPU: the cluster may have some where this process has none."""
    import ray

    if compute.workers and compute.device == "auto" and ray.is_initialized():
        return bool(ray.cluster_resources().get("GPU"))
    return uses_gpu(compute)


def device_of(compute: Compute) -> "torch.device":
    """Return the device of this process."""
    import torch

    if not uses_gpu(compute):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def group_size(compute: Compute, *, grows: bool) -> int:
    """Return how many training workers to start: `compute.workers`, or with `min_workers` its largest divisor that fits.

    Raises InfrastructureError when the cluster can never hold them, unless it `grows` and has an autoscaler that may add nodes.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = 1 if wants_gpu(compute) else 0
    fit = sum(bundles_on(node, compute.threads, gpus) for node in nodes)
    sizes = group_sizes(compute)
    for size in sizes:
        if size <= fit:
            return size
    if grows and _has_autoscaler():
        return sizes[0]
    require_bundles(sizes[-1], compute.threads, gpus, nodes, "this Ray cluster")
    return sizes[-1]


def group_sizes(compute: Compute) -> list[int]:
    """Return the sizes that a group of training workers may have, largest first: divisors, so that batches still divide evenly."""
    minimum = compute.min_workers or compute.workers
    return [size for size in range(compute.workers, 0, -1) if compute.workers % size == 0 and size >= minimum]


def wait_for_dead_nodes() -> None:
    """Wait until every node that Ray believes alive can be reached, but no longer than NOTICE_SECONDS.

    A node that was lost a moment ago still counts as alive: a group started now would wait in vain for its resources.
    """
    import ray

    deadline = time.monotonic() + NOTICE_SECONDS
    warned = False
    while time.monotonic() < deadline:
        silent = next((node for node in ray.nodes() if node["Alive"] and not _answers(node)), None)
        if silent is None:
            return
        if not warned:
            warned = True
            print(f"node {silent['NodeID'][:8]} does not answer: waiting for Ray to declare it dead", flush=True)
        time.sleep(0.5)


def remove_placement_groups() -> None:
    """Remove this program's placement groups, and with them the processes that still run there.

    The controller of a worker group does so when the group fails, unless it was killed too (Ray's memory monitor kills several
    processes of a node at once). The resources would be held until this program ends, and no other group could start.
    """
    import ray
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    own = ray.get_runtime_context().get_job_id()  # its placement groups have ids that end with it
    for identity, group in placement_group_table().items():
        if group["state"] != "REMOVED" and identity.endswith(own):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identity))))


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=2).close()
    except OSError:
        return False
    return True


def bundles_on(resources: Mapping[str, float], cpus: int, gpus: int) -> int:
    """Return how many bundles of `cpus` and `gpus` a node with these resources holds."""
    by_cpu = math.floor(resources.get("CPU", 0) / cpus)
    return min(by_cpu, math.floor(resources.get("GPU", 0) / gpus)) if gpus else by_cpu


def require_bundles(minimum: int, cpus: int, gpus: int, nodes: Iterable[Mapping[str, float]], cluster: str) -> None:
    """Raise InfrastructureError, naming the resource, unless `nodes` hold `minimum` bundles of `cpus` and `gpus` when idle."""
    nodes = list(nodes)
    if sum(bundles_on(node, cpus, gpus) for node in nodes) >= minimum:
        return
    short = "GPUs" if gpus and sum(bundles_on(node, cpus, 0) for node in nodes) >= minimum else "CPUs"
    has = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes) or "no node"
    requested = f"{minimum} x ({cpus} CPUs" + (f", {gpus} GPU)" if gpus else ")")
    raise InfrastructureError(
        f"{cluster} can never give {requested}: it lacks {short}, its nodes have {has}; lower compute.workers, min_workers or "
        "threads, or set compute.device"
    )


def adds_nodes(report: Mapping[str, object] | None) -> bool:
    """Return whether a Ray autoscaler with this report may add nodes. Without a cloud it gives each node its own type.

    The second generation of the autoscaler leaves no report here: then it is assumed that it may.
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
