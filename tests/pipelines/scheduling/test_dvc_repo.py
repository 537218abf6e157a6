"""DVC's side of the scheduler against the real, sequential `dvc repro` of the same small project."""

import json
import os
import random
import shutil
import signal
import sys
import time

import pytest
from repositories import git
from small_projects import CODE, RATE, RATE_OF_THE_PROBE, RUNS

from components.errors import DataError, ParameterError
from pipelines.errors import InfrastructureError
from pipelines.graph import find
from pipelines.scheduling.dry_run import decisions
from pipelines.scheduling.needs import Need
from pipelines.scheduling.plan import Plan

CACHE = {"copy": "", "hardlink": "[cache]\n    type = hardlink\n", "reflink": "[cache]\n    type = reflink,copy\n"}


def needs(found):
    return {address: decision.need for address, decision in found.items()}


def shuffled(seed):
    return random.Random(seed).choice


def test_from_no_lock_every_order_and_every_batch_gives_the_bytes_of_a_sequential_repro(project, sequential):
    dvc = project.dvc()
    ignored = (project.root / ".gitignore").read_bytes()
    found = project.bring_up_to_date(dvc, choose=shuffled(1))
    assert set(needs(found).values()) == {Need.RUN}
    first = [find("taca_train@taca"), find("base_model"), find("prepare")]  # a failure's batch
    assert dvc.record(first) == {}
    again = project.dvc()  # the command was killed, and is given again
    rest = [run for run in RUNS if run not in first]
    random.Random(2).shuffle(rest)
    assert again.record(rest[:1]) == again.record(rest[1:]) == {}
    assert project.lock == sequential.lock
    assert project.status() == {}
    assert (project.root / ".gitignore").read_bytes() == ignored
    assert not (project.root / ".dvc/tmp/repro.appended").exists()
    assert git(project.root, "diff", "--cached", "--name-only") == ""  # core.autostage is off
    assert {decision.need for decision in decisions(project.dvc(), Plan(RUNS)).values()} == {Need.UNCHANGED}


@pytest.mark.heavy
def test_a_stale_lock_gets_the_bytes_of_a_sequential_repro_and_an_undone_parameter_is_restored(
    finished, sequential, edited
):
    assert set(needs(decisions(finished.dvc(), Plan(RUNS))).values()) == {Need.UNCHANGED}
    finished.edit(*RATE)
    dvc = finished.dvc()
    found = finished.bring_up_to_date(dvc, choose=shuffled(3))
    stale = finished.stale(found)
    assert dvc.record(stale[::-1]) == {}
    assert finished.lock == edited.lock
    assert finished.status() == {}
    (where,) = {decision.reasons[0] for address, decision in found.items() if address == "base_model"}
    assert where.startswith("base_model.")
    assert where.endswith("learning_rate: 0.006 -> 0.0065")
    finished.edit(*RATE[::-1])
    dvc = finished.dvc()
    found = finished.bring_up_to_date(dvc)
    assert {needs(found)[run.address] for run in stale} <= {Need.RESTORE, Need.RUN}  # as below
    assert dvc.record(stale) == {}
    assert finished.lock == sequential.lock
    assert finished.status() == {}


def test_outs_that_are_missing_are_checked_out_and_nothing_else_is_touched(finished, sequential):
    shutil.rmtree(finished.root / "models")
    shutil.rmtree(finished.root / "curves")
    text = finished.lock.decode().replace("stages:\n", "stages:\n  of_a_sweep:\n    cmd: sh other.sh\n")
    (finished.root / "dvc.lock").write_text(text)
    dvc = finished.dvc()
    found = finished.bring_up_to_date(dvc)
    assert set(needs(found).values()) == {Need.UNCHANGED, Need.CHECK_OUT}, needs(found)
    assert found["probe"].reasons == ("models/probe is missing", "curves/probe/all.csv is missing")
    assert dvc.record(finished.stale(found)) == {}
    assert finished.lock.decode() == text
    for folder in ("models", "curves", "metrics"):
        for file in (sequential.root / folder).rglob("*.*"):
            assert (finished.root / file.relative_to(sequential.root)).read_bytes() == file.read_bytes()


def test_only_what_equals_its_manifest_is_recorded_and_the_rest_is_said_in_one_line(finished, sequential):
    (finished.root / CODE).write_text("2\n")
    dvc = finished.dvc()
    for address in ("prepare", "probe", "base_model"):
        assert dvc.decide(find(address)).need is Need.RUN
        assert f"{CODE} changed" in dvc.decide(find(address)).reasons
        dvc.before_run(find(address))
        finished.work(find(address))
    before = finished.lock
    (finished.root / "models/probe/part.csv").write_text("edited\n")
    (finished.root / "models/base.json").unlink()
    problems = dvc.record([find("probe"), find("base_model")])
    assert problems["probe"] == "models/probe: not what the stage has written: run again"
    assert "models/base.json" in problems["base_model"]
    assert "does not exist" in problems["base_model"]
    (finished.root / CODE).write_text("3\n")  # meanwhile
    problems = dvc.record([find("prepare"), find("taca_cache")])
    assert set(problems) == {"prepare", "taca_cache"}  # taca_cache has not run: its outs are those of the old code
    assert problems["prepare"] == "its parameters, inputs or code changed since it ran: run again"
    assert not any("\n" in line for line in problems.values())
    assert finished.lock == before
    (finished.root / CODE).write_text("2\n")
    assert dvc.record([find("prepare")]) == {}
    text = finished.lock.decode()
    assert text != before.decode()
    assert text[text.index("  probe:") :] == before.decode()[before.decode().index("  probe:") :]


def test_a_result_in_scratch_is_put_in_place_after_a_kill_and_recorded(project, sequential):
    runs = [find("prepare"), find("probe")]
    for run in runs:
        project.work(run)  # finished, and killed before anything was recorded
    shutil.rmtree(project.root / "models")
    (project.root / "metrics/prepare/all.json").write_text("{}")
    dvc = project.dvc()
    assert set(needs(project.bring_up_to_date(dvc, runs)).values()) == {Need.FOUND}
    assert dvc.record(runs) == {}
    assert project.lock == sequential.lock[: sequential.lock.index(b"  base_model:")]
    (kept,) = project.workspace.home.glob("probe-*/outputs/models/probe/part.csv")
    kept.write_text("x")
    dvc = project.dvc()
    decision = dvc.decide(find("probe"), force=True)
    assert decision.need is Need.FOUND
    assert dvc.put_in_place(find("probe"), decision) is False  # damaged: it has to be run


def test_a_recorder_that_dies_in_mid_write_leaves_the_old_lock_and_an_undone_parameter_is_restored(
    finished, sequential, monkeypatch
):
    finished.edit(*RATE_OF_THE_PROBE)
    probe = [find("prepare"), find("probe")]
    dvc = finished.dvc()
    assert needs(finished.bring_up_to_date(dvc, probe)) == {"prepare": Need.UNCHANGED, "probe": Need.RUN}

    def torn(*arguments):
        (path,) = finished.root.glob(".dvc.lock*")
        path.write_text("sche")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", torn)
        with pytest.raises(KeyboardInterrupt):
            dvc.record(probe[1:])
    assert finished.lock == sequential.lock
    dvc = finished.dvc()
    assert needs(finished.bring_up_to_date(dvc, probe))["probe"] is Need.RESTORE  # the run cache had it already
    assert dvc.record(probe[1:]) == {}
    assert b"learning_rate: 0.0045" in finished.lock
    finished.edit(*RATE_OF_THE_PROBE[::-1])
    # `dvc repro` itself, which ran it with the first rate, keeps no run cache of a stage with outs that git keeps.
    assert needs(finished.bring_up_to_date(dvc, probe))["probe"] in (Need.RESTORE, Need.RUN)
    assert dvc.record(probe[1:]) == {}
    assert finished.lock == sequential.lock
    assert finished.status() == {}


@pytest.mark.heavy
def test_a_recorder_killed_at_any_moment_leaves_the_old_or_the_new_lock_and_the_next_one_goes_on(project, sequential):
    for run in RUNS:
        project.work(run)
    for delay in (0.2, 0.5, 0.8, 1.2, 1.6, 2.0, 2.4, 2.8, 3.2):
        recorder = os.fork()
        if recorder == 0:
            try:
                dvc = project.dvc()
                dvc.record(project.stale(project.bring_up_to_date(dvc)))
            finally:
                os._exit(0)
        time.sleep(delay)
        os.kill(recorder, signal.SIGKILL)
        os.waitpid(recorder, 0)
        assert not (project.root / "dvc.lock").exists() or project.lock == sequential.lock
    dvc = project.dvc()
    found = project.bring_up_to_date(dvc)
    assert Need.RUN not in needs(found).values()
    assert dvc.record(project.stale(found)) == {}
    assert project.lock == sequential.lock
    assert project.status() == {}


@pytest.mark.parametrize("kind", ["hardlink", pytest.param("reflink", marks=pytest.mark.heavy)])
def test_outs_that_are_links_into_the_cache_are_removed_before_a_run(project, kind):
    (project.root / ".dvc/config.local").write_text(CACHE[kind])
    dvc = project.dvc()
    prepare = [find("prepare")]
    project.bring_up_to_date(dvc, prepare)
    assert dvc.record(prepare) == {}
    out = project.root / "data/people/part.csv"
    if kind == "hardlink":
        assert out.stat().st_nlink > 1
    cached = {file: file.read_bytes() for file in (project.root / ".dvc/cache").rglob("*") if file.is_file()}
    (project.root / CODE).write_text("2\n")
    dvc = project.dvc()
    project.bring_up_to_date(dvc, prepare)
    assert dvc.record(prepare) == {}
    assert all(file.read_bytes() == text for file, text in cached.items())
    assert dvc.decide(find("prepare")).need is Need.UNCHANGED


def test_another_dvc_may_read_meanwhile_and_not_write(finished, monkeypatch):
    from dvc.exceptions import ReproductionError
    from dvc.lock import LockError
    from dvc.repo import Repo

    dvc = finished.dvc()
    with dvc.reserved(RUNS):
        mine = list(sys.argv)
        monkeypatch.setattr(sys, "argv", ["dvc", "other"])
        assert finished.status() == {}
        with pytest.raises(ReproductionError) as refused:
            finished.sequential("probe")
        assert "is busy" in str(refused.value.__cause__)
        assert f"(PID {os.getpid()}): {' '.join(mine)}" in str(refused.value.__cause__)
        with pytest.raises(LockError, match="is busy"):
            Repo(".").commit("prepare", force=True)
        monkeypatch.setattr(sys, "argv", mine)
        shutil.rmtree(finished.root / "models/probe")
        assert dvc.put_in_place(find("probe"), dvc.decide(find("probe")))
        assert dvc.record([find("probe")]) == {}
    assert not any(json.loads((finished.root / ".dvc/tmp/rwlock").read_text()).values())
    entry = {"pid": os.getppid(), "cmd": "dvc repro"}
    path = str(finished.root / "models/probe")
    (finished.root / ".dvc/tmp/rwlock").write_text(json.dumps({"write": {path: entry}, "read": {}}))
    with pytest.raises(InfrastructureError, match=r"busy.*PID") as refused, dvc.reserved(RUNS):
        pass
    assert "\n" not in str(refused.value)


@pytest.mark.heavy
def test_pull_fetches_what_is_missing_from_the_remote(finished, tmp_path):
    from dvc.repo import Repo

    (finished.root / ".dvc/config.local").write_text(
        f"[core]\n    remote = there\n['remote \"there\"']\n    url = {tmp_path / 'remote'}\n"
    )
    Repo(".").push(run_cache=True)
    before = finished.lock
    for folder in (".dvc/cache", "models", "curves"):
        shutil.rmtree(finished.root / folder)
    dvc = finished.dvc(pull=True)
    found = finished.bring_up_to_date(dvc)
    assert set(needs(found).values()) == {Need.CHECK_OUT}
    assert dvc.record(RUNS) == {}
    assert finished.lock == before
    assert finished.status() == {}
    finished.edit(*RATE)
    assert finished.dvc().decide(find("base_model")).need is Need.RUN


def test_the_plan_says_why_each_stage_is_stale_and_what_cannot_be_known_yet(finished):
    finished.edit(*RATE)
    (finished.root / "data/raw/README.md").write_text("other\n")
    found = decisions(finished.dvc(), Plan(RUNS))
    assert found["prepare"].need is Need.RUN
    assert found["prepare"].reasons == ("data/raw changed",)
    assert found["taca_cache"].reasons == ("after prepare, base_model",)
    assert found["base_model"].reasons[0].endswith("0.006 -> 0.0065")
    assert found["base_model"].reasons[-1] == "after prepare"
    forced = decisions(finished.dvc(), Plan([find("prepare")]), force=True)
    assert forced["prepare"].reasons == ("--force", "data/raw changed")
    shutil.rmtree(finished.root / "models")
    (finished.root / "data/raw/README.md").write_text("raw\n")
    finished.edit(*RATE[::-1])
    foreseen = needs(decisions(finished.dvc(), Plan(RUNS)))
    assert foreseen["base_model"] == foreseen["taca_train@taca"] == Need.CHECK_OUT
    assert foreseen["taca_cache"] == foreseen["prepare"] == Need.UNCHANGED


def test_what_is_no_project_is_said_in_one_line(project, tmp_path, monkeypatch):
    with pytest.raises(ParameterError, match=r"dvc\.yaml: report is not as in pipelines/graph.py: run `python -m"):
        project.dvc().decide(find("report"))
    (project.root / "dvc.lock").write_text("<<<<<<< ours\n")
    with pytest.raises(DataError, match=r"dvc\.lock cannot be read"):
        project.dvc().decide(find("prepare"))
    (project.root / "dvc.yaml").unlink()
    with pytest.raises(ParameterError, match=r"dvc\.yaml"):
        project.dvc()
    shutil.rmtree(project.root / ".dvc")
    with pytest.raises(DataError, match="not a DVC repository"):
        project.dvc()
