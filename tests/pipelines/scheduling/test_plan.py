"""Which stage runs a command is about, their order, and the time that they should take."""

import itertools
import json
import os
import random

import networkx
import pytest

from components.errors import ParameterError
from pipelines import params
from pipelines.graph import all_runs, find, producers
from pipelines.identity.closure import ROOT
from pipelines.scheduling.durations import UNKNOWN_SECONDS, Durations
from pipelines.scheduling.plan import Plan, chosen_runs, expected_time

EDGES = [
    (producers()[path].address, run.address)
    for run in all_runs()
    for path in run.inputs.values()
    if path in producers()
]
GRAPH = networkx.DiGraph(EDGES)


def addresses(runs):
    return [run.address for run in runs]


@pytest.mark.parametrize("target", ["prepare", "taca_generate@taca_lora", "curate", "gadms_finetune@random", "report"])
def test_targets_mean_what_they_mean_to_dvc(target):
    upstream, downstream = networkx.ancestors(GRAPH, target), networkx.descendants(GRAPH, target)
    assert set(addresses(chosen_runs([target]))) == {target, *upstream}
    assert set(addresses(chosen_runs([target], downstream=True))) == {target, *downstream}
    assert addresses(chosen_runs([target], single_item=True)) == [target]
    whole = Plan(all_runs())
    assert set(addresses(whole.downstream(find(target)))) == downstream
    assert set(addresses(whole.upstream(find(target)))) == set(GRAPH.predecessors(target))


def test_a_stage_without_an_arm_means_all_its_arms_and_no_name_means_everything():
    assert addresses(chosen_runs(["taca_train"], single_item=True)) == ["taca_train@lora", "taca_train@taca"]
    assert addresses(chosen_runs(["taca_train@taca", "prepare"], single_item=True)) == ["prepare", "taca_train@taca"]
    assert chosen_runs([]) == chosen_runs(["dvc.yaml"]) == all_runs()
    assert chosen_runs(["dvc.yaml:probe"]) == chosen_runs(["probe"])
    for unknown in ("taca", "taca_train@nothing", "probe@taca"):
        with pytest.raises(ParameterError, match="does not exist"):
            chosen_runs([unknown])


def test_a_stage_of_pre_training_is_refused_with_the_command_that_runs_it_and_not_listed():
    for target in ("pretrain_probe", "dvc.yaml:pretrain_publish"):
        part = target.rpartition("_")[2]
        with pytest.raises(ParameterError, match=f"run `python -m pipelines pretrain {part}`$"):
            chosen_runs([target])
    with pytest.raises(ParameterError, match=r"report; did you mean taca_train\?$"):
        chosen_runs(["taca_trian"])


def test_the_run_with_the_longest_path_behind_it_comes_first():
    draw = random.Random(0)
    seconds = {run.address: draw.uniform(1, 100) for run in all_runs()}
    plan = Plan(all_runs(), lambda run: seconds[run.address])
    for run in all_runs():
        below = GRAPH.subgraph({run.address, *networkx.descendants(GRAPH, run.address)})
        ends = [node for node in below if not below.out_degree(node)]
        paths = itertools.chain.from_iterable(
            networkx.all_simple_paths(below, run.address, end) if end != run.address else [[end]] for end in ends
        )
        assert plan.remaining(run) == pytest.approx(max(sum(seconds[node] for node in path) for path in paths))
    longest = addresses(plan.longest_path())
    assert sum(seconds[address] for address in longest) == pytest.approx(plan.remaining(find("prepare")))
    assert longest == networkx.dag_longest_path(_weighted(seconds))[:-1]
    ready = plan.ready({"prepare"})
    assert set(addresses(ready)) == {name for name in GRAPH if set(GRAPH.predecessors(name)) == {"prepare"}}
    assert {"probe", "base_model"} <= set(addresses(ready))
    assert ready == sorted(ready, key=plan.remaining, reverse=True)


def _weighted(seconds):
    """Edges that weigh what their first node takes; an end after the last ones."""
    ends = [(run.address, "end") for run in all_runs() if not GRAPH.out_degree(run.address)]
    return networkx.DiGraph([(a, b, {"weight": seconds[a]}) for a, b in [*EDGES, *ends]])


def test_the_expected_time_is_the_sum_with_one_place_and_the_longest_path_with_enough():
    seconds = {run.address: 1.0 + len(run.address) for run in all_runs()}
    plan = Plan(all_runs(), lambda run: seconds[run.address])
    assert expected_time(plan, lambda run, running: not running) == pytest.approx(sum(seconds.values()))
    assert expected_time(plan, lambda run, running: True) == pytest.approx(plan.remaining(find("prepare")))
    two = expected_time(plan, lambda run, running: len(running) < 2)
    assert max(plan.remaining(find("prepare")), sum(seconds.values()) / 2) <= two < sum(seconds.values())
    with pytest.raises(ParameterError, match="prepare: fits in no place"):
        expected_time(plan, lambda run, running: False)


def test_a_run_is_expected_to_take_as_long_as_it_took_with_these_parameters(tmp_path):
    known = params.load(ROOT / "params.yaml")

    def finished(folder: str, seconds: float, age: float, parameters: object) -> None:
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "DONE.json"
        file.write_text(json.dumps({"cost": {"cost/seconds": seconds}, "provenance": {"parameters": parameters}}))
        os.utime(file, (1e9 - age, 1e9 - age))

    own = known.only(find("taca_generate@taca").stage.reads)
    finished("taca_generate-taca-0000000000000001", 10.0, 3, own)
    finished("taca_generate-taca-0000000000000002", 20.0, 2, own)
    finished("taca_generate-taca-0000000000000003", 30.0, 1, {"other": 1})
    finished("taca_generate-taca_lora-0000000000000004", 40.0, 0, {"other": 1})
    (tmp_path / "probe-0000000000000005").mkdir()
    (tmp_path / "probe-0000000000000005" / "DONE.json").write_text("torn")
    durations = Durations(tmp_path, known)
    assert durations(find("taca_generate@taca")) == 20.0  # the newest with the same parameters
    assert durations(find("taca_generate@taca_lora")) == 40.0  # another arm's manifest is not taken for its own
    assert durations(find("taca_generate@base")) == 20.0  # it has not run: as an arm that has
    assert durations(find("probe")) == durations(find("curate")) == UNKNOWN_SECONDS
    assert durations.known(find("probe")) is None
    assert durations.is_assumed(find("probe"))
    assert not durations.is_assumed(find("taca_generate@base"))
    assert Durations(tmp_path / "none", known)(find("probe")) == UNKNOWN_SECONDS
