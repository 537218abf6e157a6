"""A new SQLite store has all of its tables or is not there."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from components.errors import ParameterError
from pipelines.tracking.addresses import sqlite_file, sqlite_uri
from pipelines.tracking.database import create_database
from pipelines.tracking.runs import connect
from pipelines.workspace import Workspace


@pytest.fixture
def migrations(monkeypatch, empty_store):
    """Stands for MLflow's migrations: copies a finished store, and dies in between where `killed` is set."""

    class Migrations:
        killed = False
        made = 0

        def __call__(self, uri: str) -> None:
            file = sqlite_file(uri)
            file.write_bytes(empty_store.read_bytes()[:100_000])
            if self.killed:
                os._exit(9)
            shutil.copy(empty_store, file)
            self.made += 1

    migrations = Migrations()
    monkeypatch.setattr("mlflow.db.upgrade.callback", migrations)
    return migrations


def test_a_kill_while_tables_are_made_leaves_no_store_and_the_next_process_makes_it(tmp_path, migrations, empty_store):
    file = tmp_path / "a store?.db"
    migrations.killed = True
    child = os.fork()
    if not child:
        create_database(sqlite_uri(file))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not file.exists()
    (left,) = tmp_path.iterdir()
    assert left.stat().st_size == 100_000, "it was killed in between"
    migrations.killed = False
    create_database(sqlite_uri(file))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == empty_store.read_bytes()


def test_a_store_that_is_there_and_stores_that_are_no_files_are_left_alone(tmp_path, migrations, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(b"of somebody")
    for uri in (
        sqlite_uri(tmp_path / "mlflow.db"),
        sqlite_uri(tmp_path / "no/folder.db"),
        "sqlite://",
        "http://host:5000",
    ):
        create_database(uri)
    create_database("sqlite:///:memory:")
    assert not migrations.made
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    (tmp_path / "mlflow.db").write_bytes(b"")  # as sqlite3 leaves one that was opened and not written
    create_database(sqlite_uri(tmp_path / "mlflow.db"))
    assert migrations.made == 1


@pytest.mark.heavy
def test_kills_at_any_moment_of_the_first_connection_leave_a_store_that_works(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path / "mlflow.db"))
    words = "from pipelines.tracking.runs import connect; from pipelines.workspace import Workspace; from pathlib import Path; "
    words += f"connect(Workspace(Path({str(tmp_path)!r}), Path({str(tmp_path)!r})))"
    for wait in (0.05, 0.2, 0.6, 1.2, 2.0):
        process = subprocess.Popen([sys.executable, "-c", words])
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*.db*")) + list(tmp_path.glob(".mlflow.db*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    tracker = connect(Workspace(tmp_path, tmp_path))
    assert tracker.client.get_experiment(tracker.experiment).lifecycle_stage == "active"


def test_a_store_with_some_of_its_tables_is_said_to_be_one(tmp_path, empty_store, monkeypatch):
    import sqlite3
    from contextlib import closing

    file = shutil.copy(empty_store, tmp_path / "mlflow.db")
    with closing(sqlite3.connect(file)) as database:  # as if killed after the first table of this migration
        database.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")
        database.execute("DROP TABLE logged_model_tags")
        database.commit()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path / "mlflow.db"))
    with pytest.raises(
        ParameterError, match=r"mlflow\.db has only some of its tables: .* Restore the file, or move it away"
    ):
        connect(Workspace(tmp_path, tmp_path))
