"""Where a checkout keeps its scratch root and its tracking store."""

from pathlib import Path

import pytest
from repositories import git, make_repository

from components.errors import ParameterError
from pipelines.__main__ import main
from pipelines.tracking.addresses import sqlite_file, tracking_uri
from pipelines.workspace import Workspace, workspace_root, worktrees


def test_linked_worktrees_and_experiments_that_dvc_runs_elsewhere_share_those_of_their_checkout(tmp_path, monkeypatch):
    for name in ("PIPELINES_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    main, linked = tmp_path / "main", tmp_path / "linked"
    main.mkdir()
    (main / "params.yaml").touch()
    git(make_repository(main), "worktree", "add", "--quiet", "-b", "other", str(linked))
    # `dvc exp run --temp` and `--queue`: a new repository, which DVC deletes in the end.
    experiments = [checkout / ".dvc" / "tmp" / "exps" / "tmp1234" for checkout in (main, linked)]
    for experiment in experiments:
        experiment.mkdir(parents=True)
        git(experiment, "init", "--quiet")
    for root in (main, linked, *experiments, experiments[0] / "project"):
        root.mkdir(exist_ok=True)
        workspace = Workspace.at(root)
        assert (workspace.root, workspace.home) == (root, main / ".runs")
        assert tracking_uri(workspace) == f"sqlite:///{main / 'mlflow.db'}"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small repository of a project."""
    for name in ("PIPELINES_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "params.yaml").touch()
    return make_repository(folder)


def test_scratch_is_in_the_checkout_wherever_git_keeps_its_own_folder(project, tmp_path):
    (tmp_path / "separate").mkdir()
    git(
        tmp_path, "clone", "--quiet", "--separate-git-dir", str(tmp_path / "separate/store.git"), str(project), "cloned"
    )
    git(tmp_path, "clone", "--quiet", "--bare", str(project), "bare/.git")
    git(tmp_path / "bare/.git", "worktree", "add", "--quiet", "--detach", "../work")
    git(tmp_path, "init", "--quiet", "super")
    git(tmp_path / "super", "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(project), "sub")
    for root in (tmp_path / "cloned", tmp_path / "bare/work", tmp_path / "super/sub"):
        assert Workspace.at(root).home == root / ".runs", root
    git(tmp_path / "super/sub", "worktree", "add", "--quiet", "--detach", str(tmp_path / "linked"))
    assert Workspace.at(tmp_path / "linked").home == tmp_path / "super/sub/.runs"
    assert worktrees(tmp_path / "linked") == [tmp_path / "linked", tmp_path / "super/sub"]
    git(tmp_path / "cloned", "worktree", "add", "--quiet", "--detach", str(tmp_path / "alone"))
    assert Workspace.at(tmp_path / "alone").home == tmp_path / "alone/.runs"  # git does not know its main worktree


def test_a_folder_of_a_larger_repository_keeps_its_own_in_every_worktree(tmp_path, monkeypatch):
    monkeypatch.delenv("PIPELINES_HOME", raising=False)
    place = tmp_path / "mono/ml/vision"
    place.mkdir(parents=True)
    (place / "params.yaml").touch()
    git(make_repository(tmp_path / "mono"), "worktree", "add", "--quiet", "--detach", str(tmp_path / "linked"))
    for root in (place, tmp_path / "linked/ml/vision"):
        assert Workspace.at(root).home == place / ".runs"
        assert set(worktrees(root)) == {place, tmp_path / "linked/ml/vision"}
    experiment = tmp_path / "mono/.dvc/tmp/exps/tmp1/ml/vision"
    experiment.mkdir(parents=True)
    assert Workspace.at(experiment).home == place / ".runs"


def test_the_workspace_is_found_from_below(project, tmp_path):
    below = project / "docs/figures"
    below.mkdir(parents=True)
    assert workspace_root(below) == workspace_root(project) == project
    assert workspace_root(tmp_path) == tmp_path


def test_the_chosen_scratch_root_may_be_in_the_home_directory_or_relative(project, monkeypatch):
    for chosen, home in (
        ("~/runs", Path.home() / "runs"),
        ("../shared", project.parent / "shared"),
        ("/x", Path("/x")),
    ):
        monkeypatch.setenv("PIPELINES_HOME", chosen)
        assert Workspace.at(project).home == home


def test_a_folder_that_was_deleted_is_one_line(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["runs"]) == 3
    assert capsys.readouterr().err == "error: the current folder was deleted: change to another one\n"


def test_the_home_directory_of_nobody_is_one_line(project, monkeypatch):
    monkeypatch.setenv("PIPELINES_HOME", "~a-user-that-is-not-there/runs")
    with pytest.raises(ParameterError, match=r"PIPELINES_HOME = '~a-user-that-is-not-there/runs': .* give the folder"):
        Workspace.at(project)


@pytest.mark.parametrize("name", ["what?now", "feature%2Flogin", "50% of a#b c"])
def test_the_address_of_the_store_is_that_file_whatever_its_name(tmp_path, monkeypatch, name):
    from sqlalchemy import create_engine, text

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / name).mkdir()
    uri = tracking_uri(Workspace.at(tmp_path / name))
    with create_engine(uri).begin() as connection:
        connection.execute(text("create table t (x)"))
    assert sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.db")) == [f"{name}/mlflow.db"]
    assert sqlite_file(uri) == tmp_path / name / "mlflow.db"
    assert sqlite_file("postgresql://somewhere/x") is None
