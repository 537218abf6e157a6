"""The doctor's check of the Ray cluster of jobs, from here over its dashboard, and on each node with a small job.

Checked: the cluster and its State API answer; Ray and Python have the same version here, on the head and on the nodes;
authentication; CPUs and GPUs as params.yaml asks; every node sees the storage, and has disk space; MLflow answers.
"""

import os
import platform
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.errors import InfrastructureError, StageFailedError, one_line
from pipelines.health.findings import Finding, State
from pipelines.identity.closure import ROOT
from pipelines.jobs.dashboard import Cluster, JobRequest, Node, dashboard_address, require_fits, resources_for
from pipelines.jobs.following import FollowedJob
from pipelines.jobs.inspection import report_in
from pipelines.jobs.snapshot import freeze
from pipelines.params import Parameters
from pipelines.redaction import without_secrets
from pipelines.schema.running import Compute
from pipelines.scratch.storage import Storage
from pipelines.workspace import Workspace

MIN_FREE_GIB = 5.0
PROBE_SECONDS = 90.0


def check_cluster(chosen: Parameters, workspace: Workspace) -> list[Finding]:
    """Check what a job needs; only if a cluster is configured."""
    compute = chosen.compute
    given = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS", "").startswith("http")
    asked = compute.backend == "job"
    if not (compute.address or given or asked):
        facts = "started on this machine by the stages that need it (compute.backend: local)"
        return [Finding("Ray", State.MADE, True, facts)]
    tracking = _tracking()
    try:
        cluster = Cluster(dashboard_address(compute))
        nodes = cluster.nodes()
        version = cluster.ray_version
    except InfrastructureError as error:
        return [Finding("Ray cluster", State.MISSING, asked, dashboard_address(compute), (str(error),)), *tracking]
    here = [_versions(cluster, version, nodes, asked), _auth(asked), _resources(compute, cluster, nodes, asked)]
    return [*here, *tracking, *_check_nodes(compute, cluster, nodes, asked)]


def _versions(cluster: Cluster, version: str, nodes: list[Node], asked: bool) -> Finding:
    import ray

    facts = f"{cluster.address}: Ray {version}, {len(nodes)} nodes; the State API answers"
    if version != ray.__version__:
        fix = f"here is Ray {ray.__version__}: install requirements.lock on both sides"
        return Finding("Ray cluster", State.INCOMPLETE, asked, facts, (fix,))
    return Finding("Ray cluster", State.WHOLE, asked, facts)


def _auth(asked: bool) -> Finding:
    """Check the mode; the token is never shown."""
    mode = os.environ.get("RAY_AUTH_MODE", "disabled")
    if mode == "token":
        return Finding("authentication", State.WHOLE, asked, "by token, from the environment")
    fix = (
        "anybody who reaches the dashboard can run code: keep it on loopback, or start the head with RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN"
    )
    return Finding("authentication", State.DIFFERENT, asked, f"RAY_AUTH_MODE={mode}", (fix,))


def _resources(compute: Compute, cluster: Cluster, nodes: list[Node], asked: bool) -> Finding:
    total = {name: sum(node.resources.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    facts = f"{total['CPU']:g} CPUs, {total['GPU']:g} GPUs for {compute.workers} workers of {compute.threads} threads"
    try:
        require_fits(resources_for(True, compute, nodes), nodes, cluster.address)
    except InfrastructureError as error:
        if cluster.grows():
            return Finding("resources", State.DIFFERENT, asked, f"{facts}; an autoscaler may add nodes", (str(error),))
        return Finding("resources", State.MISSING, asked, facts, (str(error),))
    return Finding("resources", State.WHOLE, asked, facts)


def _tracking() -> list[Finding]:
    """Check the tracking server, over HTTP, so that the check creates nothing."""
    import requests

    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    shown = without_secrets(uri)
    if not uri.startswith(("http://", "https://")):
        facts = shown or "a SQLite file here; written from this machine only, also when stages run as jobs"
        remark = "`python -m pipelines submit` needs a server: set MLFLOW_TRACKING_URI"
        return [Finding("MLflow", State.WHOLE, False, facts, (remark,))]
    parts = urlsplit(uri)
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or parts.username
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or parts.password
    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=10, auth=(user, password or "") if user else None)
        answer.raise_for_status()
    except requests.RequestException as error:
        fix = f"start it, or set MLFLOW_TRACKING_URI ({one_line(error, 120)})"
        return [Finding("MLflow", State.MISSING, True, shown, (fix,))]
    return [Finding("MLflow", State.WHOLE, True, f"{shown} answers")]


def _check_nodes(compute: Compute, cluster: Cluster, nodes: list[Node], asked: bool) -> list[Finding]:
    """Run `pipelines.jobs.inspection`, which inspects every node, as a job, and read its report from its log."""
    if compute.storage is None:
        fix = "set compute.storage to a folder that every node sees, or to s3://bucket/prefix"
        return [Finding("storage", State.MISSING, asked, "compute.storage is null", (fix,))]
    storage = Storage(compute.storage, timeout=5)
    token, name = uuid.uuid4().hex, f"doctor/{uuid.uuid4().hex}"
    try:
        storage.write(name, token)
    except InfrastructureError as error:
        return [Finding("storage", State.MISSING, asked, compute.storage, (str(error),))]
    try:
        seen = _inspect(cluster, storage.url, name)
    except (InfrastructureError, StageFailedError) as error:
        return [Finding("jobs", State.MISSING, asked, "a small job did not finish", (str(error),))]
    finally:
        storage.delete(name)
    by_node = {report["node"]: report for report in seen}
    return [_node(node, by_node.get(node.node_id), token, compute, asked) for node in nodes]


def _inspect(cluster: Cluster, url: str, name: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="job-") as folder:
        freeze(ROOT, Path(folder) / "code")
        key = f"doctor-{uuid.uuid4().hex[:12]}"
        request = JobRequest(key, f"python -m pipelines.jobs.inspection {url} {name}", Path(folder) / "code")
        job = FollowedJob(cluster, request, patience=10, retries=0, quiet=True)
        deadline = time.monotonic() + PROBE_SECONDS

        def check_deadline() -> None:
            if time.monotonic() > deadline:
                job.stop(5)
                raise InfrastructureError(f"the job has not ended after {PROBE_SECONDS:.0f} s: is the cluster busy?")

        job.follow(check_deadline)
        return report_in(cluster.logs(request.submission(1)))


def _node(node: Node, report: dict[str, Any] | None, token: str, compute: Compute, asked: bool) -> Finding:
    subject = f"node {node.address}"
    if report is None:
        return Finding(subject, State.MISSING, asked, "no task ran there in time", ("it may be busy or starting",))
    remarks = []
    if report["read"] != token:
        remarks.append(
            f"does not see what was written to {compute.storage} here ({report['error'] or 'no such file'}): mount it there"
        )
    if report["python"] != (here := platform.python_version()):
        remarks.append(f"runs Python {report['python']}, here is {here}: install the same")
    if report["free_gib"] < MIN_FREE_GIB:
        remarks.append(f"has {report['free_gib']:.1f} GiB free for Ray's files: make room for {MIN_FREE_GIB:g}")
    if compute.device == "cuda" and report["gpus"] != node.resources.get("GPU", 0):
        remarks.append(
            f"Ray counts {node.resources.get('GPU', 0):g} GPUs there, torch sees {report['gpus']}: check the driver"
        )
    facts = (
        f"Python {report['python']}, torch {report['torch']}, {report['gpus']} GPUs, {report['free_gib']:.0f} GiB free"
    )
    return Finding(subject, State.INCOMPLETE if remarks else State.WHOLE, asked, facts, tuple(remarks))
