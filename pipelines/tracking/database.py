"""Makes the tables of a new SQLite store."""

from pathlib import Path

from components.files import remove_temporaries, written_atomically
from pipelines.tracking.addresses import sqlite_file, sqlite_uri


def create_database(uri: str) -> None:
    """Make MLflow's tables where the address is that of a SQLite file that is not there, or is empty; else nothing.

    They are made in a temporary file that then gets the name. MLflow makes them in one migration after another, which SQLite
    commits one by one: a process that is killed in between would leave a file that MLflow can neither use nor complete.
    The caller holds the lock under which databases are created.
    """
    file = sqlite_file(uri)
    if file is None or not file.parent.is_dir() or _size(file) or file.name in ("", ":memory:"):
        return
    from mlflow.db import upgrade

    remove_temporaries(file.parent, file.name)
    with written_atomically(file) as temporary:
        upgrade.callback(sqlite_uri(temporary.absolute()))


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
