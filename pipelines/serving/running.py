"""`python -m pipelines serve`: one replica on this machine, until Ctrl-C."""

import contextlib
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError, ParameterError
from components.search.gallery.reading import Gallery
from pipelines.engine.ray_cluster import is_joined, ray_session, set_ray_defaults
from pipelines.errors import InfrastructureError, one_line
from pipelines.params import Compute
from pipelines.search.gallery_search import INDEX
from pipelines.serving.access import ANY_ADDRESS
from pipelines.serving.limits import LIMITS
from pipelines.serving.proxy import ENVIRONMENT
from pipelines.serving.settings import ReplicaSettings, ServeOptions, replica_settings
from pipelines.workspace import Workspace

NAME = "person-search"
KEEP_ALIVE_SECONDS = 15


def serve(options: ServeOptions, workspace: Workspace) -> None:
    """Serve a gallery until this process is interrupted.

    Raises ParameterError for a taken port or a missing token, DataError for a gallery or a model that cannot be opened.
    """
    if is_joined():
        raise ParameterError(
            f"serve: starts a Ray of its own on this machine, and RAY_ADDRESS is {os.environ['RAY_ADDRESS']}: unset it; on a "
            "cluster use infra/kuberay/rayservice.yaml"
        )
    folder = options.gallery or workspace.path(INDEX)
    if options.gallery is None and not folder.is_dir():
        raise DataError(f"serve: {INDEX} does not exist: run `make repro`, or name a gallery")
    settings = replica_settings(options, folder, workspace.root)
    size = Gallery.open(folder).size
    host = "127.0.0.1" if options.host == "localhost" else options.host
    port = free_port(host, options.port)
    with _running(settings, host, port):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has set a handler of its own
        url = address(host, port, options.allowed_host)
        print(f"{size} pictures of {folder}: open {url} (Ctrl-C stops it; errors: {_log_folder()})", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        print("stopping", flush=True)


def free_port(host: str, port: int) -> int:
    """Return `port`, or any free one for 0. Raises ParameterError where it cannot be had.

    Serve's own socket shares its port with any other Serve of this user on this machine, and each would get some of the requests.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise ParameterError(
                f"serve: cannot listen on {host} port {port} ({reason}): choose others with --host and --port"
            ) from None
        return int(probe.getsockname()[1])


def address(host: str, port: int, allowed: Sequence[str] = ()) -> str:
    """Return the address to open in a browser; for all addresses of this machine, by the first `allowed` name or else its own."""
    name = [*allowed, socket.gethostname()][0] if host in ANY_ADDRESS else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


@contextlib.contextmanager
def _running(settings: ReplicaSettings, host: str, port: int) -> Iterator[None]:
    os.environ.update(ENVIRONMENT)
    set_ray_defaults()
    from ray import serve as ray_serve

    for logger in ("ray._private.worker", "ray.serve"):  # how they start interests nobody
        logging.getLogger(logger).setLevel(logging.WARNING)
    with ray_session(Compute()):
        http = {
            "host": host,
            "port": port,
            "request_timeout_s": LIMITS.search_seconds + 10,
            "keep_alive_timeout_s": KEEP_ALIVE_SECONDS,
        }
        _deploy(settings, http)
        try:
            yield
        finally:  # the replica ends when it has answered; then all of Ray goes
            ray_serve.delete(NAME)


def _deploy(settings: ReplicaSettings, http: Mapping[str, Any]) -> None:
    from ray import serve as ray_serve

    from pipelines.serving.deployment import deployed

    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    try:
        ray_serve.start(proxy_location="HeadOnly", http_options=dict(http), logging_config=quiet)
        ray_serve.run(deployed(settings), name=NAME, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        application = ray_serve.status().applications.get(NAME)
        said = [each.message for each in application.deployments.values()] if application else []
        raise _reason("\n".join([*said, str(error)])) from error


def _log_folder() -> str:
    """Return where Serve's processes log: Ray's folder of this session, which it keeps."""
    from ray._private.worker import global_worker

    return str(Path(global_worker.node.get_logs_dir_path()) / "serve")


def _reason(said: str) -> Exception:
    """Return why a replica did not start: the error of its constructor, which Serve hands on as a text with a traceback."""
    for kind in (DataError, ParameterError):
        if found := re.search(rf"\b{kind.__name__}(?:\([^)]*\))?: (.+)", said):
            return kind(found[1].strip())
    return InfrastructureError(f"serve: Ray Serve could not start the service: {one_line(said)}")
