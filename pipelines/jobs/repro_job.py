"""The entry point of a submitted pipeline: `python -m pipelines.jobs.repro_job STORAGE KEY INPUTS [TARGET]`, in the frozen copy.

The checkout is copied into the shared folder, once, and `python -m pipelines repro` runs there, so that training workers on any
node read a stage's inputs at the same path as its driver. It is not a repository (`core.no_scm`); all such checkouts share one DVC
cache. An attempt after a lost job continues in the same checkout, with the finished stages in the scratch root.

Heavy stages are jobs of their own, beside this one, where the cluster has room for both; else they run in this one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

from pipelines.engine.ray_cluster import bundles_on, set_ray_defaults
from pipelines.errors import INTERRUPTED, InfrastructureError, one_line, report_error
from pipelines.jobs.dashboard import Cluster, resources_for
from pipelines.jobs.task import output_folder, place_inputs, write_manifest
from pipelines.params import as_environment, load
from pipelines.scratch.folder import Scratch
from pipelines.scratch.manifest import JobManifest
from pipelines.scratch.storage import Storage, files_below

RETURNED = ("dvc.lock", "metrics")
"""Results that are not in the DVC cache."""


def main(url: str, key: str, inputs: Mapping[str, str], targets: list[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        storage = Storage(url)
        if storage.folder is None or not storage.folder.is_dir():
            raise InfrastructureError(f"{url}: this node does not see the shared folder")
        checkout = storage.folder / "checkouts" / key
        with Scratch(storage.folder / "runs" / key).lock():
            make_checkout(Path.cwd(), checkout, storage, inputs)
            code = repro(checkout, targets, stages_as_jobs(checkout, storage))
            if code:
                return code
            returned = [name for name in RETURNED if (checkout / name).exists()]
            files = {name: file for each in returned for name, file in files_below(checkout / each).items()}
            storage.publish(files, output_folder(key))
            write_manifest(storage, key, JobManifest(targets=targets))
    except BaseException as error:
        return report_error(error)
    return 0


def make_checkout(source: Path, checkout: Path, storage: Storage, inputs: Mapping[str, str]) -> None:
    """Make the checkout with its inputs in a temporary folder, then rename it; nothing to do after an earlier attempt."""
    if checkout.exists():
        return
    copy = checkout.with_name(f".{checkout.name}.{uuid.uuid4().hex[:8]}")
    try:
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        place_inputs(storage, inputs, copy)
        config = f"[core]\n    no_scm = true\n[cache]\n    dir = {storage.path('dvc-cache')}\n"
        (copy / ".dvc").mkdir(exist_ok=True)
        (copy / ".dvc" / "config.local").write_text(config)
        os.rename(copy, checkout)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def stages_as_jobs(checkout: Path, storage: Storage) -> dict[str, str]:
    """Return the environment that makes heavy stages jobs of this cluster; empty if it has no room for one beside this job."""
    compute = load(checkout / "params.yaml", for_dvc=True).compute
    try:
        cluster = Cluster(own_dashboard())
        nodes, grows = cluster.nodes(), cluster.grows()
    except InfrastructureError as error:
        print(
            f"warning: {one_line(error)}; all stages run in this job, one after the other", file=sys.stderr, flush=True
        )
        return {}
    need = resources_for(True, compute, nodes)
    if not grows and sum(bundles_on(node.resources, need.cpus, need.gpus) for node in nodes) < need.minimum + 1:
        return {}
    return as_environment({"backend": "job", "address": cluster.address, "storage": storage.url})


def own_dashboard() -> str:
    """Return the address of the dashboard of the cluster that this job runs on. Raises InfrastructureError."""
    set_ray_defaults()
    from ray.dashboard.utils import get_address_for_submission_client

    try:
        return str(get_address_for_submission_client(None))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InfrastructureError(f"this cluster's dashboard is not found: {one_line(error)}") from error


def repro(checkout: Path, targets: list[str], environment: Mapping[str, str]) -> int:
    """Run `python -m pipelines repro` in the checkout, with `environment` added, and return its exit code, that of a failed stage.

    Ray stops a job by a SIGTERM to each of its processes, so this one leaves it to the scheduler to save what runs.
    """
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # unlike SIG_IGN, not inherited
    try:
        command = [sys.executable, "-m", "pipelines", "repro", *targets]
        code = subprocess.run(command, cwd=checkout, env={**os.environ, **environment}, check=False).returncode
    finally:
        signal.signal(signal.SIGTERM, before)
    if code == -signal.SIGTERM:  # it had not got as far as to save anything
        return INTERRUPTED
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    code = main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
