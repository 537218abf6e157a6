"""The cost of a stage: of all its attempts, and of the workers that have computed it."""

import json
import os
import signal
import time
from contextlib import contextmanager, nullcontext, suppress
from types import SimpleNamespace

import psutil
import pytest
import torch
from mlflow import MlflowClient
from pretended_stages import Finished, make_chain, pretend
from processes import wait_until

from pipelines import graph
from pipelines.engine import cost, execution, runner
from pipelines.engine.child import usage_of
from pipelines.engine.cost import Meter, worker_cost
from pipelines.engine.execution import RankFolders
from pipelines.records.stage_record import hardware
from pipelines.schema.running import Compute
from pipelines.scratch.folder import Scratch
from pipelines.scratch.spent import Spent, WorkerGroup, add_costs

SECONDS = ("cost/seconds", "cost/worker_seconds", "cost/gpu_seconds")


def group(workers, device="cuda"):
    return WorkerGroup(workers=workers, device=device, hardware={})


def test_every_worker_counts_and_gpus_only_where_there_are_some():
    assert worker_cost(10.0, group(4, "cpu")) == (40.0, 0.0)
    assert worker_cost(10.0, group(4)) == (40.0, 40.0)
    assert worker_cost(10.0, None) == (10.0, 0.0)


def test_costs_are_added_and_the_largest_memory_counts():
    first = {"cost/seconds": 2.0, "cost/peak_memory_mb": 300.0}
    second = {"cost/seconds": 3.0, "cost/peak_memory_mb": 200.0, "cost/gpu_seconds": 1.0}
    assert add_costs([first, second]) == {"cost/seconds": 5.0, "cost/peak_memory_mb": 300.0, "cost/gpu_seconds": 1.0}


@pytest.mark.parametrize("noted", [None, "", "torn {", "[]", "3"])
def test_an_attempt_without_a_readable_note_of_others_is_the_first(noted):
    assert Spent(noted, print).total({"cost/seconds": 2.0}) == {"cost/seconds": 2.0}


def test_an_attempt_that_notes_often_counts_once():
    written = []
    for _ in range(3):  # attempts
        spent = Spent(written[-1] if written else None, written.append)
        for seconds in (1.0, 2.0, 3.0):
            spent.note({"cost/seconds": seconds})
    assert json.loads(written[-1]) == {"cost/seconds": 9.0}


def test_workers_are_counted_as_many_as_there_are_at_each_time(monkeypatch):
    """A group of 4 waits 10 s for its GPUs, trains 20 s, loses a node, and trains 30 s with 2."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(cost.time, "monotonic", lambda: clock.now)
    groups = [(10, None), (20, group(4)), (30, group(2))]
    present = []
    meter = Meter(Spent(None, print), lambda: present[-1], only=SECONDS)
    for seconds, there in groups:
        clock.now += seconds
        present.append(there)
        found = meter.total()
    assert found == {
        "cost/seconds": 60.0,
        "cost/worker_seconds": 10.0 + 4 * 20 + 2 * 30,
        "cost/gpu_seconds": 4 * 20 + 2 * 30.0,
    }


def test_a_storage_that_is_away_ends_no_stage(monkeypatch):
    monkeypatch.setattr(cost, "NOTE_SECONDS", 0.01)
    tried = []

    def write(text):
        tried.append(text)
        raise OSError("stale file handle")

    with Meter(Spent(None, write), lambda: None).noted():
        wait_until(lambda: len(tried) > 2, timeout=20)


def test_the_usage_of_a_living_process_is_read_from_the_system():
    child = os.fork()
    if not child:
        while True:
            pass
    try:
        process = SimpleNamespace(pid=child, returncode=None)
        wait_until(lambda: usage_of(process).cpu_seconds > 0.1, timeout=20)
        assert usage_of(process).cpu_seconds <= sum(psutil.Process(child).cpu_times()[:2]) + 0.01
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert usage_of(process) is None


# -- attempts of the runner --------------------------------------------------------------------------------------------


@pytest.fixture
def chain(tmp_path, empty_store, monkeypatch):
    chain = make_chain(tmp_path / "workspace", empty_store)
    pretend(monkeypatch, chain.store)
    monkeypatch.setattr(cost, "NOTE_SECONDS", 0.05)
    return chain


class Unfinished(Finished):
    """A child process that computes on and on."""

    returncode, pid = None, os.getpid()

    def wait(self, timeout=None):
        time.sleep(0.05)

    poll = wait


def never_ends(patch, then=lambda: None):
    """Let the stage's process run until `then` raises."""

    class Watched(Unfinished):
        def wait(self, timeout=None):
            super().wait()
            then()

    @contextmanager
    def process(run, params, scratch, workspace, held):
        scratch.group_file.write_text(group(3).to_json())
        yield Watched()

    patch.setattr(runner, "stage_process", process)


def noted(chain):
    files = list(chain.workspace.home.glob("prepare-*/cost.json"))
    return json.loads(files[0].read_text()) if files else {}


def test_a_stage_that_was_interrupted_and_killed_costs_what_all_attempts_have(chain, monkeypatch):
    started = time.monotonic()

    computing = []  # since when, by each look at the stage

    def interrupt():
        computing.append(time.monotonic())
        if computing[-1] - computing[0] > 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        never_ends(patch, interrupt)
        chain.run("prepare")
    first = noted(chain)
    assert 1 <= first["cost/seconds"] < time.monotonic() - started
    assert first["cost/gpu_seconds"] == pytest.approx(3 * first["cost/seconds"], rel=0.05)

    with monkeypatch.context() as patch:
        never_ends(patch)
        runner_process = os.fork()
        if not runner_process:  # a runner without time for anything
            chain.run("prepare")
            os._exit(1)
        try:
            wait_until(lambda: noted(chain)["cost/seconds"] > first["cost/seconds"] + 0.5, timeout=60)
        finally:
            os.kill(runner_process, signal.SIGKILL)
            os.waitpid(runner_process, 0)
    second = noted(chain)

    done = chain.run("prepare")
    last = {name: done["cost"][name] - second[name] for name in SECONDS}
    assert 0 < last["cost/seconds"] < 30
    assert last["cost/worker_seconds"] == pytest.approx(last["cost/seconds"])  # without a group: one process
    assert last["cost/gpu_seconds"] == 0
    shown = MlflowClient(chain.store).get_run(done["run"]).data.metrics
    assert {name: shown[name] for name in SECONDS} == {name: done["cost"][name] for name in SECONDS}

    before = noted(chain)
    assert chain.run("prepare")["cost"] == done["cost"]  # restored: costs nothing more
    assert noted(chain) == before


def test_the_machine_of_rank_0_is_that_of_the_record(chain, monkeypatch):
    here = runner.stage_process
    machine = {**hardware(), "gpu": "2 x NVIDIA H100"}

    @contextmanager
    def there(run, params, scratch, workspace, held):
        scratch.group_file.write_text(WorkerGroup(workers=2, device="cuda", hardware=machine).to_json())
        with here(run, params, scratch, workspace, held) as process:
            yield process

    monkeypatch.setattr(runner, "stage_process", there)
    done = chain.run("prepare")
    assert done["provenance"]["hardware"] == machine
    assert done["cost"]["cost/gpu_seconds"] == pytest.approx(2 * done["cost"]["cost/seconds"])
    assert MlflowClient(chain.store).get_run(done["run"]).data.tags["host.gpu"] == "2 x NVIDIA H100"


# -- what rank 0 reports -----------------------------------------------------------------------------------------------


def reported(tmp_path, monkeypatch, address, compute, ranks, device="cpu"):
    """The groups that are reported when `ranks` of as many workers run the stage, in this process."""
    scratch, found = Scratch(tmp_path), []
    scratch.begin()
    monkeypatch.setattr(execution, "stage_function", lambda run: lambda params, inputs, outputs, context: {})
    monkeypatch.setattr(execution, "device_of", lambda compute: torch.device(device))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(execution, "require_even_batches", lambda *_: None)

    def under_ray_train(on_rank, compute, storage):
        return [on_rank(rank, ranks, lambda metrics: None) for rank in reversed(range(ranks))][-1]

    monkeypatch.setattr(execution, "under_ray_train", under_ray_train)
    folders = nullcontext(RankFolders(tmp_path, scratch, begun=found.append))
    params = SimpleNamespace(seed=0, probe=None)
    execution.execute(graph.find(address), lambda rank: folders, params, compute, tmp_path)
    return found


def test_rank_0_reports_how_many_workers_there_are_and_their_gpu(tmp_path, monkeypatch):
    """`min_workers` made the group smaller than it was asked to be; the driver has no GPU."""
    compute = Compute(workers=4, min_workers=2, threads=1)
    (found,) = reported(tmp_path, monkeypatch, "probe", compute, ranks=2, device="cuda")
    assert (found.workers, found.device) == (2, "cuda")
    assert found.hardware == {**hardware(), "gpu": "2 x NVIDIA H100 80GB HBM3"}
    assert worker_cost(10.0, found) == (20.0, 20.0)


def test_workers_without_a_gpu_report_their_machine(tmp_path, monkeypatch):
    (found,) = reported(tmp_path, monkeypatch, "probe", Compute(workers=4, threads=1), ranks=4)
    assert found == WorkerGroup(workers=4, device="cpu", hardware=hardware())


def test_a_stage_that_trains_nothing_is_one_process_on_the_machine_of_its_runner(tmp_path, monkeypatch):
    (found,) = reported(tmp_path, monkeypatch, "index", Compute(workers=4, threads=1), ranks=4, device="cuda")
    assert found == group(1)
