"""What is said of a tracking store that cannot be used, from the errors of MLflow itself."""

import shutil
import sqlite3
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from components.errors import ParameterError
from pipelines.errors import InfrastructureError, exit_code
from pipelines.tracking.failures import explain
from pipelines.tracking.runs import EXPERIMENT, artifact_text, connect
from pipelines.workspace import Workspace


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """Connects to a store, and returns the error in one line, with its exit code."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)

    def connect_to(uri: str) -> tuple[str, int]:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises((ParameterError, InfrastructureError)) as raised:
            connect(Workspace(tmp_path, tmp_path))
        assert "\n" not in str(raised.value)
        return str(raised.value), exit_code(raised.value)

    return connect_to


@pytest.fixture
def database(tmp_path, empty_store) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(refusal, database, monkeypatch, tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{database}"
    client = MlflowClient(uri)
    known = client.get_experiment_by_name(EXPERIMENT)
    identifier = known.experiment_id if known else client.create_experiment(EXPERIMENT)
    client.delete_experiment(identifier)
    said, code = refusal(uri)
    assert code == 2
    assert (
        f"experiment {EXPERIMENT} was deleted: `MLFLOW_TRACKING_URI={uri} mlflow experiments restore -x {identifier}`"
        in said
    )
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team/people")
    tracker = connect(Workspace(tmp_path, tmp_path))
    assert client.get_experiment(tracker.experiment).name == "team/people"


def test_tables_of_another_mlflow_are_to_be_upgraded(refusal, database):
    with closing(sqlite3.connect(database)) as opened:
        opened.execute("update alembic_version set version_num = '0123456789ab'")
        opened.commit()
    said, code = refusal(f"sqlite:///{database}")
    assert code == 2
    assert f"`mlflow db upgrade sqlite:///{database}`" in said


def test_a_locked_database_may_be_free_later(refusal, database):
    with closing(sqlite3.connect(database, isolation_level=None)) as opened:
        opened.execute("begin exclusive")
        said, code = refusal(f"sqlite:///{database}?timeout=0.1")
    assert code == 75
    assert "is locked by another process" in said


def test_what_is_no_store_is_said_to_be_none(refusal, tmp_path):
    (tmp_path / "text.db").write_text("not a database, but some text that is long enough to be taken for one")
    for uri, advice in {
        str(tmp_path / "mlruns"): "is a folder, to which MLflow no longer writes: give sqlite:///FILE",
        f"sqlite:///{tmp_path}/text.db": "is no database",
        "redis://localhost": "is no address of a store",
        "http://exa mple:1": "is no address of a store",
        "http://host:port": "is no address of a store",
    }.items():
        said, code = refusal(uri)
        assert code == 2
        assert advice in said
        assert said.startswith("MLFLOW_TRACKING_URI: ")


@pytest.mark.parametrize(
    ("status", "advice", "code"),
    [
        (200, "not as an MLflow server", 2),
        (401, "refuses the credentials", 2),
        (403, "refuses this user", 2),
        (404, "not as an MLflow server", 2),
        (503, "answers that it has failed itself", 75),
    ],
)
def test_a_server_is_told_by_its_answer(refusal, status, advice, code):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html></html>")

        def log_message(self, *told):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said, found = refusal(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert found == code
    assert advice in said


def test_a_dead_proxy_is_named_and_not_the_server(refusal, monkeypatch):
    for name in ("NO_PROXY", "no_proxy", "HTTPS_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    said, code = refusal("http://mlflow.example.org:5000")
    assert code == 75
    assert "through the proxy http://" in said
    assert "127.0.0.1:9" in said
    assert "secret" not in said


def test_a_bug_and_an_error_of_the_disk_are_not_taken_for_the_store():
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    wrong = MlflowException("Invalid metric name", error_code=INVALID_PARAMETER_VALUE)
    for error in (TypeError("a bug"), OSError(28, "No space left on device"), wrong):
        assert explain("sqlite:///x.db", error) is error
    assert "does not answer" in str(explain("http://x", ConnectionRefusedError("refused")))


def test_an_artifact_is_missing_where_the_store_says_so_and_not_where_it_fails(database, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.create_experiment("artifacts", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "patch", "code/code.patch")
    assert artifact_text(run, "code/code.patch", client) == "patch"
    assert artifact_text(run, "code/other", client) is artifact_text(run, "other", client) is None
    assert artifact_text("0" * 32, "code/code.patch", client) is None
    with pytest.raises(MlflowException):
        artifact_text(run, "code/code.patch", MlflowClient("http://127.0.0.1:9"))
