"""Client for the dashboard of a Ray cluster, over HTTP.

Every request has a timeout. A temporary failure (no connection, a server error) raises `ClusterAwayError` and can be retried; a
permanent one (no token, another Ray version) raises InfrastructureError with what to do. The token comes from RAY_AUTH_MODE and
RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH), which Ray reads from the environment; it is never printed.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.errors import ParameterError
from pipelines.engine.ray_cluster import adds_nodes, group_sizes, require_bundles, set_ray_defaults
from pipelines.errors import InfrastructureError, one_line
from pipelines.schema.running import Compute

REQUEST_SECONDS = 15.0
DEFAULT_ADDRESS = "http://127.0.0.1:8265"


class ClusterAwayError(InfrastructureError):
    """The cluster does not answer at the moment."""


@dataclass(frozen=True)
class Node:
    """A living node and its total resources, free or not."""

    node_id: str
    address: str
    resources: Mapping[str, float]


@dataclass(frozen=True)
class ResourceRequest:
    """Resources of a job: `bundles` times (`cpus`, `gpus`), each on one node; at least `minimum` of them."""

    cpus: int
    gpus: int
    bundles: int
    minimum: int


@dataclass(frozen=True)
class JobRequest:
    """A job without its attempt number."""

    key: str
    entrypoint: str
    working_dir: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: int = 0
    gpus: int = 0

    def submission(self, attempt: int) -> str:
        return f"{self.key}-{attempt}"


def dashboard_address(compute: Compute) -> str:
    """Return compute.address, or the address in the environment, or Ray's default.

    Raises ParameterError for one that is not a dashboard's: Ray would try for a minute to join ray://, and wait for any other.
    """
    address = compute.address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        other = os.environ.get("RAY_ADDRESS", "")  # "auto" and host:port are for processes inside the cluster
        address = other if other.startswith(("http://", "https://")) else DEFAULT_ADDRESS
    found = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(found)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 80) > 0
    except ValueError:  # of the port
        usable = False
    if not usable or any(letter.isspace() for letter in found):
        raise ParameterError(
            f"compute.address (RAY_API_SERVER_ADDRESS, RAY_ADDRESS) = {address!r}: must be that of the cluster's dashboard, "
            "http://HOST:8265"
        )
    return found


class Cluster:
    """The cluster whose dashboard is at `address`."""

    def __init__(self, address: str) -> None:
        if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        set_ray_defaults()
        self.address = address
        from ray.job_submission import JobSubmissionClient

        # They log the upload of the package at length.
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.WARNING)

        class Client(JobSubmissionClient):
            """A client with a timeout on every request: Ray's own waits forever."""

            def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
                return super()._do_request(method, endpoint, timeout=REQUEST_SECONDS, **options)

        with self._translate_errors():
            self.client = Client(address)

    @property
    def ray_version(self) -> str:
        with self._translate_errors():
            return str(self.client._do_request("GET", "/api/version").json()["ray_version"])

    def require_same_ray(self) -> None:
        import ray

        if self.ray_version != ray.__version__:
            raise InfrastructureError(
                f"the cluster at {self.address} runs Ray {self.ray_version}, here is {ray.__version__}: install the same"
            )

    def nodes(self) -> list[Node]:
        """Return the living nodes, from the State API."""
        with self._translate_errors():
            answer = self.client._do_request("GET", "/api/v0/nodes?detail=1&limit=10000").json()
        if not answer.get("result"):
            raise ClusterAwayError(f"State API at {self.address} does not answer: {one_line(str(answer.get('msg')))}")
        return [
            Node(node["node_id"], node["node_ip"], node["resources_total"])
            for node in answer["data"]["result"]["result"]
            if node["state"] == "ALIVE"
        ]

    def grows(self) -> bool:
        """Return whether an autoscaler may add nodes."""
        with self._translate_errors():
            answer = self.client._do_request("GET", "/api/cluster_status").json()
        return adds_nodes(((answer.get("data") or {}).get("clusterStatus") or {}).get("autoscalerReport"))

    def info(self, submission: str) -> Any:
        """Return Ray's JobDetails, or None for a job that the cluster does not know."""
        try:
            with self._translate_errors():
                return self.client.get_job_info(submission)
        except RuntimeError as error:
            if "status code 404" in str(error):
                return None
            raise

    def logs(self, submission: str) -> str:
        with self._translate_errors():
            return str(self.client.get_job_logs(submission))

    def submit(self, request: JobRequest, attempt: int) -> None:
        """Start the job, unless it was already started under this id."""
        submission = request.submission(attempt)
        try:
            with self._translate_errors():
                self.client.submit_job(
                    entrypoint=request.entrypoint,
                    submission_id=submission,
                    runtime_env={"working_dir": str(request.working_dir), "env_vars": dict(request.environment)},
                    entrypoint_num_cpus=request.cpus or None,
                    entrypoint_num_gpus=request.gpus or None,
                )
        except InfrastructureError:
            raise
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise InfrastructureError(
                    f"the cluster refused the job {submission}: {one_line(error, 240)}"
                ) from error

    def stop(self, submission: str) -> None:
        """Request the job's end; does nothing for a job that has ended or is unknown."""
        try:
            with self._translate_errors():
                self.client.stop_job(submission)
        except RuntimeError as error:
            if "status code 404" not in str(error):
                raise

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        import ray.exceptions
        import requests

        try:
            yield
        except (ConnectionError, requests.exceptions.RequestException) as error:
            raise ClusterAwayError(
                f"no Ray cluster answers at {self.address}: start it, or set compute.address (RAY_API_SERVER_ADDRESS); "
                "`python -m pipelines doctor --cluster` looks closer"
            ) from error
        except ray.exceptions.AuthenticationError:
            raise InfrastructureError(
                f"the cluster at {self.address} asks for its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to what its "
                "head was started with"
            ) from None
        except RuntimeError as error:
            if "status code 5" in str(error):
                raise ClusterAwayError(
                    f"the cluster at {self.address} answers with an error: {one_line(error, 240)}"
                ) from error
            raise


def resources_for(trains: bool, compute: Compute, nodes: list[Node]) -> ResourceRequest:
    """Return the resources of a stage: a bundle for each training worker, or one for the job's own process."""
    has_gpus = any(node.resources.get("GPU") for node in nodes)
    gpus = 1 if compute.device == "cuda" or (compute.device == "auto" and has_gpus) else 0
    sizes = group_sizes(compute) if trains and compute.workers else [1]
    return ResourceRequest(compute.threads, gpus, sizes[0], sizes[-1])


def require_fits(need: ResourceRequest, nodes: list[Node], address: str) -> None:
    """Raise InfrastructureError, naming the resource, when the cluster could not run the job even if it were idle."""
    resources = [node.resources for node in nodes]
    require_bundles(need.minimum, need.cpus, need.gpus, resources, f"the cluster at {address}")
