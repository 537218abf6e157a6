"""`python -m pipelines ui` shows the store that runs go to."""

from types import SimpleNamespace

import pytest

from pipelines.tracking import web_interface
from pipelines.workspace import Workspace, git_output


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What `show` would have started: (arguments, environment) of each call."""
    calls = []
    monkeypatch.setattr(web_interface, "connect", lambda workspace: SimpleNamespace(experiment="3"))
    monkeypatch.setattr(
        web_interface.os, "execve", lambda program, arguments, environment: calls.append((arguments, environment))
    )
    return calls


def test_the_database_of_the_main_worktree_is_shown_from_a_linked_one(started, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    main, linked = tmp_path / "main", tmp_path / "linked"
    main.mkdir()
    for arguments in (
        ("init", "--quiet"),
        ("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--allow-empty", "-m", "t"),
    ):
        git_output(main, *arguments)
    git_output(main, "worktree", "add", str(linked))
    web_interface.show(Workspace.at(linked), 5001)
    ((arguments, environment),) = started
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{main.resolve() / 'mlflow.db'}"
    assert arguments[-2:] == ["--port", "5001"]
    assert "http://127.0.0.1:5001/#/experiments/3/runs" in capsys.readouterr().out


def test_a_password_of_the_store_is_in_the_environment_alone(started, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://me:secret@host/db")
    web_interface.show(Workspace(tmp_path, tmp_path), 5000)
    ((arguments, environment),) = started
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg2://me:secret@host/db"
    assert "secret" not in " ".join(arguments) + capsys.readouterr().out


def test_of_a_server_the_address_is_printed_and_nothing_is_started(started, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@tracking:5000/")
    web_interface.show(Workspace(tmp_path, tmp_path), 5000)
    assert started == []
    said = capsys.readouterr().out
    assert "tracking:5000/#/experiments/3/runs" in said
    assert "secret" not in said
