"""`gc` removes what is not needed, and no folder that is in use."""

import fcntl
import json
import os
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from repositories import git, make_repository

from components.errors import DataError
from pipelines import graph, params
from pipelines.dvc_files.dvc_lock import dvc_md5
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import fingerprint, tree_digests
from pipelines.locks.lease import read_lease
from pipelines.provenance import garbage_collection
from pipelines.provenance.garbage_collection import collect, scratch_folders
from pipelines.provenance.sweep_claims import record_promotion
from pipelines.scratch import claims
from pipelines.scratch.claims import claim
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


@pytest.mark.parametrize("done", [True, False], ids=["finished", "paused"])
def test_what_another_checkout_has_used_is_kept_until_that_one_gives_it_up(place, tmp_path, capsys, done):
    other = Workspace(tmp_path / "other", place.home)
    other.root.mkdir()
    shutil.copytree(place.path("data"), other.path("data"))
    shutil.copy(place.path("params.yaml"), other.path("params.yaml"))
    folder = result(place, "a" * 64, done=done)
    for root in (place.root, other.root):
        claim(folder, root)
    would = collect(place, dry=True)
    assert collect(place, dry=False) == would
    assert left(folder) >= ({"outputs", "DONE.json"} if done else {"checkpoints"})
    assert f"kept    1 folder that {other.root} has used" in capsys.readouterr().out
    collect(other, dry=False)
    assert left(folder) == {"lock", "claims.json"}


def test_a_result_whose_users_cannot_be_read_is_kept(place, capsys):
    folder = result(place, "a" * 64)
    (folder / "claims.json").write_text("[{")
    assert collect(place, dry=False) == []
    assert left(folder) >= {"outputs", "DONE.json", "checkpoints"}
    assert "claims.json cannot be read (it is damaged): delete it if no other checkout uses" in capsys.readouterr().out


def test_a_deleted_checkout_needs_nothing_and_one_of_another_machine_for_a_month(place, monkeypatch):
    folder = result(place, "a" * 64)
    monkeypatch.setattr(claims, "place", lambda: "another machine")
    claim(folder, Path("/deleted/checkout"))
    monkeypatch.undo()
    collect(place, dry=False)
    assert "outputs" in left(folder)
    monkeypatch.setattr(claims.time, "time", lambda: time.time_ns() / 1e9 + 31 * 86400)
    collect(place, dry=False)
    assert "outputs" not in left(folder)
    here = result(place, "b" * 64)
    claim(here, Path("/deleted/checkout"))
    collect(place, dry=False)
    assert "outputs" not in left(here)


def test_checkouts_at_one_path_in_two_containers_have_claims_of_their_own(place, monkeypatch, capsys):
    (place.root / ".dvc").mkdir()
    folder, own_id = result(place, "a" * 64), place.root / claims.CHECKOUT_FILE
    with monkeypatch.context() as inside:
        inside.setattr(claims, "place", lambda: "another container")
        claim(folder, place.root)
    own_id.unlink()  # here, another folder is mounted at that path
    claim(folder, place.root)
    assert len(claims.claims(folder)) == 2
    collect(place, dry=False)
    assert "outputs" in left(folder)
    assert f"that {place.root} on " in capsys.readouterr().out
    assert [known.place for known in claims.claims(folder)] == ["another container"]
    monkeypatch.setattr(claims.time, "time", lambda: time.time_ns() / 1e9 + 31 * 86400)
    collect(place, dry=False)
    assert "outputs" not in left(folder)


def test_one_checkout_seen_by_containers_that_come_and_go_has_one_claim(place, monkeypatch):
    (place.root / ".dvc").mkdir()
    folder = result(place, "a" * 64)
    for container in ("first", "second"):
        monkeypatch.setattr(claims, "place", lambda container=container: container)
        claim(folder, place.root)
    assert [known.place for known in claims.claims(folder)] == ["second"]
    collect(place, dry=False)
    assert left(folder) == {"lock", "claims.json"}


def test_a_claim_of_older_code_counts_for_its_path_and_host(place):
    older = {"root": str(place.root), "host": socket.gethostname(), "time": time.time()}
    folder = result(place, "a" * 64)
    for host, kept in (("other", True), (socket.gethostname(), False)):
        (folder / "claims.json").write_text(json.dumps([{**older, "host": host}]))
        collect(place, dry=False)
        assert ("outputs" in left(folder)) is kept


def test_a_result_in_the_dvc_lock_of_a_linked_worktree_is_kept(place, tmp_path):
    needed, unused = result(place, "a" * 64), result(place, "b" * 64, "other people")
    make_repository(place.root)
    git(place.root, "worktree", "add", "--quiet", "-b", "other", str(tmp_path / "linked"))
    outs = [{"path": "data/people", "md5": dvc_md5(needed / "outputs/data/people")}]
    lock = {"schema": "2.0", "stages": {"prepare": {"cmd": "", "outs": outs}}}
    (tmp_path / "linked" / "dvc.lock").write_text(yaml.safe_dump(lock))
    collect(place, dry=False)
    assert "outputs" in left(needed)
    assert "outputs" not in left(unused)


@pytest.mark.parametrize(
    "text",
    [
        "stages:\n<<<<<<< ours\n  prepare:\n=======\n>>>>>>> theirs\n",
        "schema: '2.0'\nstages:\n  prepare: {outs: [",
        "stages:\n  prepare:\n",
        "",
    ],
    ids=["merge conflict", "torn", "without outputs", "empty"],
)
@pytest.mark.parametrize("where", ["here", "linked"])
def test_nothing_is_removed_while_a_dvc_lock_cannot_be_read(place, tmp_path, where, text):
    folders = [result(place, "a" * 64), result(place, current(place), "other people")]
    before = [left(folder) for folder in folders]
    make_repository(place.root)
    git(place.root, "worktree", "add", "--quiet", "-b", "other", str(tmp_path / "linked"))
    lock = (tmp_path / "linked" if where == "linked" else place.root) / "dvc.lock"
    lock.write_text(text)
    with pytest.raises(DataError, match=rf"^{re.escape(str(lock))} cannot be read.*$"):
        collect(place, dry=False)
    assert [left(folder) for folder in folders] == before
    lock.unlink()
    collect(place, dry=False)
    assert [left(folder) for folder in folders] == [{"lock"}, {"outputs", "DONE.json", "lock"}]


def test_a_promotion_does_not_replace_those_that_cannot_be_read(place):
    sweep = place.home / "sweeps/gadms-1234"
    sweep.mkdir(parents=True)
    record_promotion(sweep, 3)
    file = sweep / "promoted.json"
    torn = file.read_text()[:-1]
    file.write_text(torn)
    with pytest.raises(DataError, match=r"promoted.json: cannot be read"):
        record_promotion(sweep, 1)
    assert file.read_text() == torn


def test_trials_are_kept_until_their_sweep_has_ended_and_one_was_promoted(place, capsys):
    sweep = place.home / "sweeps/gadms-1234"
    sweep.mkdir(parents=True)
    first, second, shared = (result(place, letter * 64, letter) for letter in "abc")
    for folder, root in ((first, "trials/000/seed-0"), (second, "trials/001/seed-0"), (shared, "shared")):
        claim(folder, sweep / root)

    def kept() -> list[bool]:
        collect(place, dry=False)
        return ["outputs" in left(folder) for folder in (first, second, shared)]

    assert kept() == [True, True, True]
    assert "kept    3 folders that sweep gadms-1234 uses, which has not ended" in capsys.readouterr().out
    (sweep / "results.json").write_text(json.dumps({"trials": [{}, {}], "counts": {"waiting": 0}}))
    assert kept() == [True, True, True]
    assert "sweep gadms-1234 has made: `promote` one of its trials" in capsys.readouterr().out
    record_promotion(sweep, 1)
    assert kept() == [False, True, False]
    collect(place, dry=False, sweeps=True)
    assert "outputs" not in left(second)


def test_a_folder_is_held_on_every_machine_while_it_is_emptied(place, monkeypatch):
    folder = result(place, "a" * 64)
    seen = []
    monkeypatch.setattr(garbage_collection, "remove", lambda path: seen.append(read_lease(folder / "lease.json").pid))
    collect(place, dry=False)
    assert seen == [os.getpid()] * 3
    assert read_lease(folder / "lease.json") is None


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
