"""The address of the tracking store.

In the address of a SQLite file, a "?" of the path would end it, and a "%2F" be read as "/": both are quoted.
"""

import os
from pathlib import Path
from urllib.parse import unquote

from pipelines.workspace import Workspace, main_worktree

SQLITE = "sqlite:///"


def tracking_uri(workspace: Workspace) -> str:
    """Return MLFLOW_TRACKING_URI, or the address of a SQLite file in the main worktree."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(main_worktree(workspace.root) / "mlflow.db")


def sqlite_uri(file: Path) -> str:
    """Return the address of a SQLite file."""
    return SQLITE + str(file).replace("%", "%25").replace("?", "%3F")


def has_store(workspace: Workspace) -> bool:
    """Return whether the store is there: a SQLite file is made with the first run, a server is taken to be."""
    file = sqlite_file(tracking_uri(workspace))
    return file is None or file.exists()


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an address, None for another kind of address."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0])) if uri.startswith(SQLITE) else None
