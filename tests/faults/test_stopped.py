"""A stage stopped in the middle: with notice and without, by a bad number, by an edit, and between any two of its last steps."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from processes import wait_until

from components.files import write_atomically
from components.training.checkpoint import CheckpointStore
from pipelines.identity.closure import ROOT

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def error_lines(errors):
    assert "Traceback" not in errors
    return [line for line in errors.splitlines() if line.strip() and not line.startswith("warning")]


@pytest.mark.parametrize("everybody", [False, True], ids=["the runner", "every process"])
def test_sigterm_gives_training_the_time_to_save_its_step(started, workers, same_results, everybody):
    """Schedulers and spot machines tell every process, `kill` only one."""
    saved = 0
    while saved % 5 == 0:  # again where a checkpoint was due at that step as well, which shows nothing
        place, process = started(saved + 10)
        (worker,) = workers(process)
        before = max(place.steps("probe"))
        (os.killpg if everybody else os.kill)(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert not worker.is_running()
        (run,) = place.tracked("probe")
        assert run.info.status == "KILLED"
        saved = max(place.steps("probe"))
        assert before <= saved < 150
    finished = place.run("probe")
    assert finished.returncode == 0, finished.stderr
    assert f"main: resuming from step {saved}\n" in finished.stdout
    same_results(place)


def test_training_that_does_not_leave_in_time_is_ended_and_loses_one_interval(started, workers, same_results):
    place, process = started(PIPELINES_GRACE="1")
    (worker,) = workers(process)
    worker.suspend()
    stopped = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    assert process.returncode == 130
    assert time.monotonic() - stopped < 60
    assert not worker.is_running()
    assert place.run("probe").returncode == 0
    same_results(place)


def test_a_loss_that_is_not_finite_ends_with_its_step_and_keeps_the_last_checkpoint(started):
    place, process = started()
    process.kill()
    process.communicate(timeout=90)
    (folder,) = (place.scratch("probe")[0] / "checkpoints").iterdir()
    store = CheckpointStore(folder)
    deadline = time.monotonic() + 20
    while (found := store.load()) is None or found[0] != store.steps()[-1]:  # the worker may be ending a write
        assert time.monotonic() < deadline
    step, state = found
    name = next(iter(state["weights"]))
    state["weights"][name].fill_(float("nan"))  # as a wrong learning rate does, in one step
    store.save(state, step)
    finished = place.run("probe")
    assert finished.returncode == 1
    (line,) = error_lines(finished.stderr)
    assert f"the loss is not finite at step {step + 1}; the last checkpoint is kept" in line
    assert place.steps("probe")[-1] == step
    (run,) = place.tracked("probe")
    assert run.info.status == "FAILED"


def test_a_parameter_edited_while_a_stage_runs_does_not_reach_its_result(started, calm, same_results):
    place, process = started()
    place.edit({"probe": {"training": {"steps": 151}}})
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 75
    (line,) = error_lines(errors)
    assert "changed while it ran" in line
    assert "run again" in line
    assert not (place.root / "models/probe").exists()
    (run,) = place.tracked("probe")
    assert run.data.params["probe.training.steps"] == "150"  # what it read
    again = place.run("probe")
    assert (again.returncode, "found finished" in again.stdout) == (0, False)
    assert len(place.tracked("probe")) == 2
    place.edit({"probe": {"training": {"steps": 150}}})
    back = place.run("probe")  # what was computed is not lost
    assert (back.returncode, "found finished" in back.stdout) == (0, True)
    assert yaml.safe_load((place.root / "params.yaml").read_text())["probe"]["training"]["steps"] == 150


@pytest.mark.parametrize("first", ["runner", "worker"])
def test_a_folder_that_another_machine_has_taken_over_is_left_at_once(started, workers, first):
    """As after a suspension: the other one trains in it by now. The runner finds out at its next beat, the worker as it saves."""
    place, process = started()
    (worker,) = workers(process)
    runner = psutil.Process(process.pid)
    later = worker if first == "runner" else runner
    later.suspend()
    (folder,) = place.scratch("probe")
    foreign = {"token": "other", "machine": "other", "host": "elsewhere", "pid": 7, "beat": 1}
    write_atomically(folder / "lease.json", json.dumps(foreign))
    if later is runner:
        wait_until(lambda: worker.status() == psutil.STATUS_ZOMBIE, timeout=60)
        runner.resume()
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 75
    (line,) = error_lines(errors)
    assert "process 7 on elsewhere has taken over" in line
    assert "did not renew its lease" in line  # the runner's words
    assert not worker.is_running()
    assert not (folder / "leave").exists()  # it would send the other one's training home
    assert json.loads((folder / "lease.json").read_text()) == foreign


DIES = """
import os, signal, sys
from importlib import import_module
module = import_module("pipelines.{module}")
original = module.{name}
def dying(*arguments, **options):
    if {condition}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
module.{name} = dying
from pipelines.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
MOMENTS = {
    "outputs final, DONE not written": ("scratch.folder", "write_atomically", "arguments[0].name == 'DONE.json'"),
    "DONE, the run not closed": ("engine.runner", "_close", "True"),
    "the run closed, outputs not in place": ("engine.runner", "put_in_place", "True"),
    "the second output not in place": ("engine.runner", "put_in_place", "'metrics' in str(arguments[1])"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_between_the_last_steps_costs_seconds_and_no_number(with_people, long, same_results, moment):
    with_people.edit(long)
    module, name, condition = MOMENTS[moment]
    code = DIES.format(module=module, name=name, condition=condition)
    killed = subprocess.run(
        [sys.executable, "-c", code, "--workspace", str(with_people.root), "run", "probe"],
        cwd=ROOT,
        env=with_people._environment({}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    finished = with_people.run("probe")
    assert finished.returncode == 0, finished.stderr
    went_on = re.findall(r"resuming from step (\d+)", finished.stdout)
    assert went_on == (["150"] if "DONE not written" in moment else [])
    same_results(with_people)
    (run,) = with_people.tracked("probe")
    assert "cost/seconds" in run.data.metrics
