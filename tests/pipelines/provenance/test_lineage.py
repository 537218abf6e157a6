"""How a result is named: by its stage, or by a path as it is typed in any folder of the project."""

from pathlib import Path

import pytest

from pipelines.provenance.lineage import find_stage
from pipelines.provenance.verification import upstream
from pipelines.workspace import Workspace


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with two models, of which one file is a link into DVC's cache, and a link to the project beside it."""
    root = tmp_path / "project"
    (root / "models/probe/parts").mkdir(parents=True)
    (root / ".dvc/cache").mkdir(parents=True)
    (root / ".dvc/cache/md5").write_text("{}")
    (root / "models/base.json").symlink_to(root / ".dvc/cache/md5")
    (tmp_path / "link").symlink_to(root)
    return root


def stage_of(target: str, root: Path) -> str | None:
    run = find_stage(target, root)
    return run and run.address


@pytest.mark.parametrize(
    ("folder", "target", "stage"),
    [
        (".", "models/probe", "probe"),
        ("models", "models/probe", "probe"),
        ("models", "./probe/", "probe"),
        ("models", "base.json", "base_model"),
        ("models/probe", ".", "probe"),
        ("models/probe/parts", "..", "probe"),
        ("models/probe/parts", "../gone", "probe"),
        ("models/probe", "../../data/people", "prepare"),
        ("models/probe", "prepare", "prepare"),
        ("models/probe", "12345678", None),  # a run
        ("models", "../../elsewhere/models/probe", None),
        (".", ".", None),
    ],
)
def test_a_path_is_relative_to_the_project_or_to_the_current_folder(root, monkeypatch, folder, target, stage):
    monkeypatch.chdir(root / folder)
    assert stage_of(target, root) == stage


def test_an_absolute_path_may_lead_through_links(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, stage in (("models/probe", "probe"), ("models/base.json", "base_model"), ("data/people/gone", "prepare")):
        for project in (root, tmp_path / "link"):
            assert stage_of(str(project / path), root) == stage
            assert stage_of(str(root / path), project) == stage
    assert stage_of(str(tmp_path / "models/probe"), root) is None


def test_verify_takes_paths_as_they_are_typed_in_a_subfolder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root / "models")
    (root / "models/probe/part.json").touch()
    assert [run.address for run in upstream(["probe/part.json"], Workspace(root, tmp_path))] == ["prepare", "probe"]
