"""The scheduler on a Ray cluster with fewer places than stages: pretended in time that is counted, and a real one."""

import json
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from pipelines import graph, params
from pipelines.identity.closure import ROOT
from pipelines.jobs.dashboard import Node
from pipelines.scheduling.cluster_places import ClusterPlaces
from pipelines.scheduling.needs import Decision, Need
from pipelines.scheduling.plan import Plan
from pipelines.scheduling.scheduler import run_plan
from pipelines.scratch.folder import folder_stem

RECORDED = {
    "prepare": 58,
    "probe": 242,
    "base_model": 463,
    "taca_cache": 14,
    "taca_train": 37,
    "taca_generate": 77,
    "taca_evaluate": 5,
    "taca_attention": 16,
    "curate": 103,
    "gadms_pretrain": 69,
    "gadms_finetune": 213,
    "gadms_evaluate": 27,
    "index": 6,
    "train_parity": 47,
    "report": 6,
}
"""Seconds of each stage, or of one of its arms, in a default run on two cores."""

SECONDS = 10.0


class Cluster:
    """Four nodes of two CPUs."""

    address = "http://head:8265"

    def nodes(self) -> list[Node]:
        return [Node(str(index), "10.0.0.1", {"CPU": 2.0}) for index in range(4)]

    def grows(self) -> bool:
        return False


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_real_graph_with_trainings_of_two_workers_takes_little_longer_than_its_longest_path():
    chosen = params.load(ROOT / "params.yaml", for_dvc=False)
    given = {"backend": "job", "storage": "/shared", "workers": 2, "threads": 1, "device": "cpu"}
    chosen = chosen.model_copy(update={"compute": chosen.compute.model_copy(update=given)})
    time, waits = Time(), {run.address: float(RECORDED[run.stage.name]) for run in graph.all_runs()}

    def start(run, environment):
        end = time.now + waits[run.address]
        return SimpleNamespace(poll=lambda: 0 if time.now >= end else None, log=None)

    def ignore(*given):
        return {}

    repository = SimpleNamespace(
        decide=lambda run, force: Decision(Need.RUN), before_run=ignore, record=ignore, put_in_place=ignore
    )
    view = SimpleNamespace(started=ignore, ended=ignore, waiting=ignore, say=ignore)
    places = ClusterPlaces(chosen, connect=lambda address: Cluster(), clock=time)
    plan = Plan(graph.all_runs(), lambda run: waits[run.address])
    summary = run_plan(
        plan,
        repository,
        places,
        SimpleNamespace(prepare=ignore, start=start),
        view,
        SimpleNamespace(received=0, interrupting=nullcontext),
        clock=time,
        sleep=lambda seconds: time.sleep(1.0),
    )
    assert summary.exit_code == 0
    assert {str(result.state) for result in summary.results.values()} == {"done"}
    work = sum(waits[run.address] * (2 if run.stage.trains else 1) for run in plan.runs if run.stage.heavy)
    shortest = max(sum(waits[run.address] for run in plan.longest_path()), work / 8)
    assert shortest <= time.now <= shortest / 0.9


@pytest.mark.heavy
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_more_stages_than_places_never_wait_for_resources_and_all_finish(tmp_path):
    """The real graph, each stage a wait, trainings of two workers in placement groups, on four nodes of one CPU.

    A stage that was submitted beside too many others would wait for at least one of them to end.
    """
    for run in graph.all_runs():
        folder = tmp_path / f"{folder_stem(run.address)}-{'0' * 16}"
        folder.mkdir()
        (folder / "DONE.json").write_text(json.dumps({"cost": {"cost/seconds": SECONDS}, "provenance": None}))
    command = [sys.executable, "benchmarks/orchestration_cluster.py", "--scale", "1", "--home", str(tmp_path)]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "found.json")], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["bundles"] < found["stages"] == len(graph.all_runs())
    assert found["longest wait for resources"] < SECONDS
    assert found["measured"] < found["one after the other"]
