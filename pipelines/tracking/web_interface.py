"""MLflow's web interface on the store that runs go to: that of MLFLOW_TRACKING_URI, or the main worktree's."""

import os
import sys

from pipelines.tracking.addresses import tracking_uri
from pipelines.tracking.runs import connect, public_uri
from pipelines.workspace import Workspace


def show(workspace: Workspace, port: int) -> None:
    """Replace this process by MLflow's server on a database; for a store that is a server itself, print the address to open.

    The address of a database goes through the environment, as it may hold a password. Raises as `connect`.
    """
    experiment = connect(workspace).experiment
    uri = tracking_uri(workspace)
    page = f"#/experiments/{experiment}/runs"
    if uri.startswith(("http://", "https://")):
        print(f"runs go to a server: open {public_uri(workspace).rstrip('/')}/{page}")
        return
    print(f"runs in {public_uri(workspace)}: open http://127.0.0.1:{port}/{page}", flush=True)
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    os.execve(sys.executable, command, environment)
