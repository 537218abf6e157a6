"""Ray as this project starts it, and what a process computes on."""

import os

import torch

from pipelines.closure import ROOT
from pipelines.params import Compute


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

    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # loopback only; token mode would write to the home directory
    cpus = max(os.cpu_count() or 1, compute.workers * compute.threads)
    ray.init(num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)


def uses_gpu(compute: Compute) -> bool:
    return compute.device == "cuda" or (compute.device == "auto" and torch.cuda.is_available())


def device_of(compute: Compute) -> torch.device:
    if not uses_gpu(compute):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
