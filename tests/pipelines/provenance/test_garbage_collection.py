"""`gc` removes what is not needed, and no folder that is in use."""

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import graph, params
from pipelines.dvc_files.dvc_lock import dvc_md5
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import fingerprint, tree_digests
from pipelines.provenance.garbage_collection import collect, scratch_folders
from pipelines.workspace import Workspace

LONG_AGO = 1_000_000_000


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    (tmp_path / "data/raw").mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    return Workspace(tmp_path, tmp_path / ".home")


def current(place: Workspace) -> str:
    """The fingerprint that `prepare` has here now."""
    run, settings = graph.find("prepare"), params.load(place.path("params.yaml"))
    inputs = {"raw": place.path("data/raw")}
    return fingerprint(run, settings.only(run.stage.reads), inputs, settings.compute.threads)


def result(place: Workspace, identity: str, text: str = "people", *, done: bool = True, **facts: Any) -> Path:
    """A scratch folder of `prepare`, last touched long ago."""
    folder = place.home / f"prepare-{identity[:16]}"
    (folder / "outputs/data/people").mkdir(parents=True)
    (folder / "checkpoints/main/step-1").mkdir(parents=True)
    (folder / "outputs/data/people/x").write_text(text)
    (folder / "checkpoints/main/step-1/state").write_text("weights")
    (folder / "lock").touch()
    if done:
        outputs = {"data/people": tree_digests(folder / "outputs/data/people")}
        known = {"stage": "prepare", "fingerprint": identity, "outputs": outputs, **facts}
        (folder / "DONE.json").write_text(json.dumps(known))
    for path in [*folder.iterdir(), folder]:
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_result_of_the_present_parameters_stays_without_its_checkpoints(place):
    folder = result(place, current(place))
    collect(place, dry=False)
    assert left(folder) == {"outputs", "DONE.json", "lock"}


def test_an_unfinished_result_of_the_present_parameters_keeps_its_checkpoints(place):
    folder = result(place, current(place), done=False)
    assert collect(place, dry=False) == []
    assert "checkpoints" in left(folder)


@pytest.mark.parametrize("told", [True, False], ids=["md5 in the manifest", "md5 computed"])
def test_a_result_in_dvc_lock_is_kept_though_the_parameters_have_changed(place, told):
    needed, other = result(place, "a" * 64), result(place, "b" * 64, "other people")
    md5 = dvc_md5(needed / "outputs/data/people")
    if told:
        done = json.loads((needed / "DONE.json").read_text())
        (needed / "DONE.json").write_text(json.dumps({**done, "md5": {"data/people": md5}}))
    outs = {"prepare": {"cmd": "", "outs": [{"path": "data/people", "md5": md5}]}}
    place.path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": outs}))
    collect(place, dry=False)
    assert "outputs" in left(needed)
    assert left(other) == {"lock"}


def test_an_unused_result_is_removed_and_a_dry_run_only_reports_it(place, capsys):
    stale, paused = result(place, "a" * 64), result(place, "b" * 64, done=False)
    before = {folder: left(folder) for folder in (stale, paused)}
    would = collect(place, dry=True)
    assert {folder: left(folder) for folder in (stale, paused)} == before
    assert capsys.readouterr().out.count("would free") == 3
    assert collect(place, dry=False) == would
    assert left(stale) == left(paused) == {"lock"}
    assert collect(place, dry=False) == []


def test_a_folder_that_is_in_use_is_not_touched(place, capsys):
    here, elsewhere = result(place, "a" * 64), result(place, "b" * 64)
    lease = {"token": "t", "machine": "another", "host": "other", "pid": 1, "beat": 3}
    (elsewhere / "lease.json").write_text(json.dumps(lease))
    before = {folder: left(folder) for folder in (here, elsewhere)}
    with open(here / "lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert collect(place, dry=False) == []
    assert {folder: left(folder) for folder in (here, elsewhere)} == before
    assert capsys.readouterr().out.count("in use by another process") == 2


def test_an_open_sweep_keeps_what_it_named_and_what_was_touched_since_it_began(place):
    named, touched, older = result(place, "a" * 64), result(place, "b" * 64), result(place, "c" * 64)
    sweep = place.home / "sweeps/gadms-1234"
    sweep.mkdir(parents=True)
    event = {"event": "ended", "number": 0, "stages": [{"stage": "prepare", "fingerprint": "a" * 64}]}
    (sweep / "journal.jsonl").write_text(json.dumps(event) + "\n")
    os.utime(sweep / "journal.jsonl", (LONG_AGO + 100, LONG_AGO + 100))
    os.utime(touched / "outputs", (LONG_AGO + 200, LONG_AGO + 200))
    collect(place, dry=False)
    assert "outputs" in left(named) & left(touched)
    assert left(older) == {"lock"}
    (sweep / "results.json").write_text(json.dumps({"trials": [{}], "counts": {"waiting": 0}}))
    collect(place, dry=False)
    assert left(named) == left(touched) == {"lock"}


def test_only_folders_of_stages_are_looked_at(place):
    for name in (
        "studies",
        "sweeps",
        "smoke-clone",
        f"somebodys-{'a' * 16}",
        "prepare-short",
        f"taca_train-lora-{'0' * 16}",
    ):
        (place.home / name).mkdir(parents=True)
    assert [folder.name for folder in scratch_folders(place.home)] == [f"taca_train-lora-{'0' * 16}"]
