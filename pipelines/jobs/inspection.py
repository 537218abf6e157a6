"""The doctor's job: `python -m pipelines.jobs.inspection STORAGE NAME` inspects every node and prints the reports.

The reports are one line of the log, because a node may not reach the storage.
"""

import json
import os
import platform
import shutil
import sys
import tempfile
from typing import Any

from pipelines.errors import one_line

REPORT = "pipelines-inspection: "
TASK_SECONDS = 60.0


def report_in(log: str) -> list[dict[str, Any]]:
    """Return the reports in a job's log, one per node."""
    lines = [line.removeprefix(REPORT) for line in log.splitlines() if line.startswith(REPORT)]
    return list(json.loads(lines[-1])) if lines else []


def inspect_node(url: str, name: str) -> dict[str, Any]:
    """Return the report of this node; runs as a Ray task."""
    import ray

    read = error = None
    try:
        from pipelines.scratch.storage import Storage

        read = Storage(url, timeout=5).read(name)
    except Exception as problem:  # whatever it is, the doctor reports it
        error = one_line(problem)
    try:
        import torch

        version, gpus = str(torch.__version__), torch.cuda.device_count()
    except ImportError:
        version, gpus = "is not installed", 0
    return {
        "node": ray.get_runtime_context().get_node_id(),
        "read": read,
        "error": error,
        "python": platform.python_version(),
        "torch": version,
        "gpus": gpus,
        "free_gib": shutil.disk_usage(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).free / 2**30,
    }


def main(url: str, name: str) -> int:
    from pipelines.engine.ray_cluster import set_ray_defaults

    set_ray_defaults()
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(log_to_driver=False)
    alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    # Reserves no CPU, so that it runs on a busy cluster too, and sees all GPUs.
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    task = ray.remote(inspect_node)
    pinned = [
        task.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(url, name)
        for node in alive
    ]
    ready, _ = ray.wait(pinned, num_returns=len(pinned), timeout=TASK_SECONDS)
    print(REPORT + json.dumps(ray.get(ready)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
