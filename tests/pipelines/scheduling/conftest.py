"""A small project before and after the real `dvc repro`."""

import os
import shutil

import pytest
from shared_folders import made_once
from small_projects import RATE, SmallProject, count_the_code_of, make_small_project


@pytest.fixture(autouse=True)
def no_cache_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))


@pytest.fixture(scope="session")
def sequential(tmp_path_factory):
    """The project after `dvc repro`. Look, do not touch."""

    def make(folder):
        make_small_project(folder / "project")
        _sequential(SmallProject(folder / "project"))

    return SmallProject(made_once(tmp_path_factory, "sequential", make) / "project")


@pytest.fixture
def edited(sequential, tmp_path):
    """The same after another `dvc repro` with another rate."""
    shutil.copytree(sequential.root, tmp_path / "edited", symlinks=True)
    project = SmallProject(tmp_path / "edited")
    project.edit(*RATE)
    _sequential(project)
    return project


def _sequential(project):
    before = os.getcwd()
    os.chdir(project.root)
    try:
        project.sequential()
    finally:
        os.chdir(before)


@pytest.fixture
def project(monkeypatch, tmp_path, tmp_path_factory):
    """A new project with nothing run, which is the current folder."""
    made = made_once(tmp_path_factory, "small-project", lambda folder: make_small_project(folder / "project"))
    shutil.copytree(made / "project", tmp_path / "project")
    return _enter(SmallProject(tmp_path / "project"), monkeypatch)


@pytest.fixture
def finished(monkeypatch, tmp_path, sequential):
    """A copy of the project that DVC has run."""
    shutil.copytree(sequential.root, tmp_path / "finished", symlinks=True)
    return _enter(SmallProject(tmp_path / "finished"), monkeypatch)


def _enter(project, monkeypatch):
    monkeypatch.chdir(project.root)
    count_the_code_of(project, monkeypatch)
    return project
