"""DVC itself disturbed: two at once, killed alone, stopped by Ctrl-C, and what it leaves behind."""

import json
import os
import signal

import psutil
import pytest
from processes import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    checkout = prepared.copy(tmp_path_factory.mktemp("calm") / "checkout")
    checkout.repro("--single-item", "probe")
    return checkout.hashes("probe")


@pytest.fixture
def checkout(prepared, tmp_path):
    return prepared.copy(tmp_path / "checkout")


@pytest.fixture
def training(checkout):
    """Starts a `repro` of the probe, and returns it in mid-training; whatever is left at the end is ended."""
    family = []

    def start(**options):
        process = checkout.start("--single-item", "probe", **options)
        family.append(psutil.Process(process.pid))
        wait_until(lambda: checkout.progress("probe") >= 10, process, said=checkout.printed)
        family.extend(family[0].children(recursive=True))
        return process

    yield start
    for one in family:
        if one.is_running():
            one.kill()


def test_a_second_dvc_fails_fast_and_disturbs_nothing(checkout, training, undisturbed):
    first = training()
    second = checkout.start("--single-item", "probe", output=".second")
    assert second.wait(120) != 0
    assert "is busy" in checkout.printed(".second")
    assert f"(PID {first.pid})" in checkout.printed(".second")
    assert first.wait(300) == 0, checkout.printed()
    assert checkout.hashes("probe") == undisturbed
    assert [run.info.status for run in checkout.runs("probe")] == ["FINISHED"]


def test_a_second_repro_of_ours_says_so_in_one_line_or_waits(checkout, training, undisturbed):
    first = training(command="pipelines")
    second = checkout.start("--single-item", "probe", output=".second", command="pipelines")
    assert second.wait(120) == 75
    (line,) = checkout.printed(".second").splitlines()
    assert line.startswith(
        f"error: process {first.pid} runs `pipelines repro` in {checkout.root}: wait for it, say --wait"
    )
    third = checkout.start("--wait", "--single-item", "probe", output=".third", command="pipelines")
    assert first.wait(300) == 0, checkout.printed()
    assert third.wait(300) == 0, checkout.printed(".third")
    assert "waiting: process" in checkout.printed(".third")
    assert checkout.hashes("probe") == undisturbed
    assert len(checkout.runs("probe")) == 1


def test_a_stage_whose_dvc_was_killed_goes_on_and_the_next_dvc_takes_its_result(checkout, training, undisturbed):
    first = training()
    first.kill()
    first.wait(20)
    text = checkout.repro("--single-item", "probe")
    assert "had been killed" in text  # DVC finds the entry of the dead one
    assert "waiting: process" in text
    assert "found finished" in text
    assert "resuming from" not in text
    assert checkout.hashes("probe") == undisturbed
    assert [run.info.status for run in checkout.runs("probe")] == ["FINISHED"]


def test_ctrl_c_stops_the_stage_and_marks_its_run(checkout, training, undisturbed):
    process = training()
    processes = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C goes to every process of the group
    assert process.wait(120) != 0
    assert "exited with 130" in checkout.printed()
    assert "Traceback" not in checkout.printed()
    psutil.wait_procs(processes, 20)
    assert not any(one.is_running() for one in processes)
    assert [run.info.status for run in checkout.runs("probe")] == ["KILLED"]
    assert "resuming from step" in checkout.repro("--single-item", "probe")
    assert checkout.hashes("probe") == undisturbed


@pytest.mark.parametrize("content", ["torn", "reused"])
def test_locks_that_a_killed_dvc_left_are_dropped(checkout, content):
    rwlock = checkout.root / ".dvc" / "tmp" / "rwlock"
    entry = {"pid": os.getppid(), "cmd": "dvc repro"}  # lives, and is no DVC
    whole = json.dumps({"write": {str(checkout.root / "models" / "probe"): entry}, "read": {}})
    rwlock.write_text(whole if content == "reused" else whole[:20])
    assert checkout.start("--dry", "prepare").wait(120) == (
        0 if content == "reused" else 255
    )  # prepare reads other files
    process = checkout.start("--single-item", "prepare", command="pipelines", output=".ours")  # up to date
    assert process.wait(120) == 0, checkout.printed(".ours")
    assert "removed" in checkout.printed(".ours")
