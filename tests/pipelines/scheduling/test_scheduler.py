"""The order of things when many stages run: by pretended stages in pretended time."""

import random
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components.errors import DataError
from pipelines.graph import Stage, StageRun
from pipelines.scheduling.needs import Decision, Need
from pipelines.scheduling.parts import State, Summary
from pipelines.scheduling.plan import Plan
from pipelines.scheduling.scheduler import run_plan


def stage(name: str, *needs: str) -> StageRun:
    return StageRun(Stage(name, "", (), {need: f"out/{need}" for need in needs}, {name: f"out/{name}"}), None)


class Graph(Plan):
    """A plan of stages that are not the pipeline's."""

    @property
    def _upstream(self) -> Mapping[str, list[StageRun]]:  # type: ignore[override]
        by_name = {run.address: run for run in self.runs}
        return {run.address: [by_name[need] for need in run.inputs if need in by_name] for run in self.runs}


@dataclass
class Ending:
    """How a pretended stage ends: after so many seconds, with this code; `saving` seconds after a request to stop."""

    seconds: float = 1.0
    code: int = 0
    saving: float = 0.0


@dataclass
class World:
    """All that the scheduler is given. Keeps what happened, in order."""

    runs: list[StageRun]
    places: int = 2
    endings: dict[str, Ending] = field(default_factory=dict)
    needs: dict[str, Need | Exception] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    unprepared: dict[str, Exception] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    signals_at: list[float] = field(default_factory=list)
    now: float = 0.0
    happened: list[tuple[str, str]] = field(default_factory=list)
    running: dict[str, "Process"] = field(default_factory=dict)
    most: int = 0
    log = Path("log")

    def go(self, **options: Any) -> Summary:
        plan = Graph(self.runs, lambda run: self.endings.get(run.address, Ending()).seconds)
        return run_plan(
            plan, self, self, self, self, self, grace=20.0, clock=lambda: self.now, sleep=self.sleep, **options
        )

    def sleep(self, seconds: float) -> None:
        self.now += 0.25

    def names(self, what: str) -> list[str]:
        return [name for event, name in self.happened if event == what]

    # The repository

    def decide(self, run: StageRun, *, force: bool = False) -> Decision:
        self.happened.append(("decide", run.address))
        need = self.needs.get(run.address, Need.RUN)
        if isinstance(need, Exception):
            raise need
        return Decision(Need.RUN if force else need)

    def put_in_place(self, run: StageRun, decision: Decision) -> bool:
        self.happened.append(("put", run.address))
        return run.address not in self.damaged

    def before_run(self, run: StageRun) -> None:
        assert self.happened[-1] == ("prepare", run.address)
        self.happened.append(("before", run.address))

    def record(self, runs: list[StageRun]) -> dict[str, str]:
        self.happened += [("record", run.address) for run in runs]
        return {run.address: self.refused[run.address] for run in runs if run.address in self.refused}

    # Places, the starter

    def fits(self, run: StageRun, running: list[StageRun]) -> bool:
        assert {other.address for other in running} == set(self.running)
        return len(running) < self.places

    def environment(self, run: StageRun, running: list[StageRun]) -> dict[str, str]:
        return {"BESIDE": str(len(running))}

    def prepare(self, run: StageRun) -> None:
        self.happened.append(("prepare", run.address))
        if error := self.unprepared.get(run.address):
            raise error

    def start(self, run: StageRun, environment: Mapping[str, str]) -> "Process":
        assert environment == {"BESIDE": str(len(self.running))}
        assert self.happened[-1] == ("before", run.address)
        self.happened.append(("start", run.address))
        self.running[run.address] = Process(self, run.address, self.endings.get(run.address, Ending()))
        self.most = max(self.most, len(self.running))
        return self.running[run.address]

    # The view, signals

    def started(self, run: StageRun, stage: Any) -> None: ...

    def ended(self, run: StageRun, result: Any) -> None:
        self.happened.append((str(result.state), run.address))

    def waiting(self) -> None: ...

    def say(self, text: str) -> None: ...

    @property
    def received(self) -> int:
        return sum(self.now >= at for at in self.signals_at)

    def interrupting(self) -> Any:
        return nullcontext()


class Process:
    def __init__(self, world: World, name: str, ending: Ending) -> None:
        self.world, self.name, self.ending, self.log = world, name, ending, Path(name)
        self.ends, self.code = world.now + ending.seconds, ending.code

    def poll(self) -> int | None:
        if self.world.now < self.ends:
            return None
        self.world.running.pop(self.name, None)
        return self.code

    def reason(self) -> str:
        return f"{self.name} ended with {self.code}"

    def _end(self, what: str, seconds: float, code: int) -> None:
        self.world.happened.append((what, self.name))
        if self.world.now + seconds < self.ends:
            self.ends, self.code = self.world.now + seconds, code

    def stop(self) -> None:
        self._end("stop", self.ending.saving, 130)

    def interrupt(self) -> None:
        self._end("interrupt", 0.0, 130)

    def kill(self) -> None:
        self._end("kill", 0.0, -9)


DIAMOND = [stage("top"), stage("left", "top"), stage("right", "top"), stage("bottom", "left", "right"), stage("alone")]


def states(summary: Summary) -> dict[str, str]:
    return {address: str(result.state) for address, result in summary.results.items()}


def test_stages_run_at_once_each_after_its_inputs_longest_path_first():
    world = World(DIAMOND, endings={"left": Ending(5)})
    summary = world.go()
    assert summary.exit_code == 0
    assert world.names("start") == ["top", "alone", "left", "right", "bottom"]
    assert world.names("record") == ["top", "alone", "right", "left", "bottom"]
    assert world.most == 2
    assert world.now == pytest.approx(7, abs=1)  # top, left, bottom


def test_what_is_there_is_taken_and_only_what_changed_is_recorded():
    needs = {"top": Need.UNCHANGED, "left": Need.CHECK_OUT, "right": Need.FOUND, "alone": Need.RESTORE}
    world = World(DIAMOND, needs=needs)
    assert states(world.go()) == dict.fromkeys(needs, "found") | {"bottom": "done"}
    assert world.names("put") == ["alone", "left", "right"]
    assert world.names("start") == ["bottom"]
    assert world.names("record") == ["alone", "left", "right", "bottom"]
    assert set(states(World(DIAMOND, needs=needs).go(force=True)).values()) == {"done"}


def test_a_result_that_cannot_be_put_in_place_is_made_again():
    world = World(DIAMOND, needs={"top": Need.FOUND}, damaged={"top"})
    assert world.go().results["top"].state is State.DONE
    assert world.names("decide").count("top") == 1


def test_stages_that_a_result_makes_ready_start_beside_one_that_runs():
    world = World(DIAMOND, needs={"top": Need.FOUND}, endings={"alone": Ending(50)})
    world.places = 3
    world.go()
    assert world.names("start") == ["alone", "left", "right", "bottom"]
    assert world.now == pytest.approx(50, abs=1)


def test_a_failure_stops_what_needs_it_and_nothing_else():
    world = World(
        DIAMOND, endings={"left": Ending(1, code=3), "right": Ending(4), "alone": Ending(6, code=-9)}, places=3
    )
    summary = world.go()
    assert states(summary) == {"top": "done", "left": "failed", "right": "done", "bottom": "not run", "alone": "failed"}
    assert summary.exit_code == 3  # of the first
    assert summary.results["alone"].code == 75  # killed: the same command may succeed
    assert summary.results["bottom"].reason == "needs left"
    assert world.happened.index(("record", "top")) < world.happened.index(("done", "right"))  # at the failure


def test_an_error_before_a_stage_starts_is_its_failure():
    world = World(DIAMOND, needs={"left": DataError("data/raw: not there")})
    summary = world.go()
    assert (summary.results["left"].reason, summary.exit_code) == ("data/raw: not there", 3)
    assert summary.results["right"].state is State.DONE


def test_the_outputs_of_a_stage_that_cannot_be_prepared_stay():
    world = World(DIAMOND, unprepared={"left": OSError(28, "No space left on device")})
    summary = world.go()
    assert states(summary)["left"] == "failed"
    assert summary.exit_code == 75
    assert set(world.names("before")) == {"top", "right", "alone"}


def test_a_bug_stops_and_records_what_runs():
    world = World(DIAMOND, needs={"left": KeyError("bug")}, endings={"alone": Ending(50)})
    with pytest.raises(KeyError):
        world.go()
    assert world.names("stop") == ["alone"]
    assert world.names("record") == ["top"]


def test_fail_fast_stops_the_others_as_ctrl_c_does():
    world = World(DIAMOND[:4], endings={"left": Ending(2, code=1), "right": Ending(90, saving=3)})
    summary = world.go(fail_fast=True)
    assert states(summary) == {"top": "done", "left": "failed", "right": "stopped", "bottom": "not run"}
    assert summary.exit_code == 1
    assert world.now < 10


def test_a_result_that_is_not_recorded_is_a_failure():
    summary = World(DIAMOND, refused={"alone": "params.yaml has changed meanwhile"}).go()
    assert summary.results["alone"].state is State.FAILED
    assert summary.results["bottom"].state is State.DONE
    assert summary.exit_code == 75


@pytest.mark.parametrize(
    ("signals", "saving", "asked", "ends"),
    [
        ([3], 5, ["stop"], 8),
        ([3, 5], 15, ["stop", "interrupt"], 5),  # a second Ctrl-C does not wait
        ([3], 90, ["stop", "interrupt"], 23),  # nor does the grace period
    ],
)
def test_ctrl_c_lets_stages_save_their_state_and_records_what_has_finished(signals, saving, asked, ends):
    long = {name: Ending(90, saving=saving) for name in ("left", "right")}
    world = World(DIAMOND[:4], endings=long, signals_at=signals)
    summary = world.go()
    assert states(summary) == {"top": "done", "left": "stopped", "right": "stopped", "bottom": "not run"}
    assert summary.exit_code == 130
    assert world.names("record") == ["top"]
    assert [what for what, name in world.happened if name == "left" and what in ("stop", "interrupt", "kill")] == asked
    assert world.now == pytest.approx(ends, abs=1)


@pytest.mark.parametrize("seed", range(150))
def test_of_any_graph_all_runs_that_can(seed):
    """Whatever ends when and how: nothing starts before its inputs are in place, or twice, or where there is no room."""
    chance = random.Random(seed)
    names = [f"s{number}" for number in range(chance.randint(1, 12))]
    runs = [
        stage(name, *(other for other in names[:number] if chance.random() < 0.3)) for number, name in enumerate(names)
    ]
    needs = {name: chance.choice([*Need, Need.RUN, Need.RUN, Need.RUN]) for name in names}
    endings = {name: Ending(chance.choice([0, 1, 1, 7]), code=chance.choice([0, 0, 0, 0, 1, 75, -9])) for name in names}
    world = World(runs, places=chance.randint(1, 4), endings=endings, needs=needs)
    summary = world.go()

    fails = {name for name in names if needs[name] is Need.RUN and endings[name].code != 0}
    reachable: dict[str, bool] = {}
    for run in runs:  # an independent truth: what fails and what needs it, by definition
        reachable[run.address] = all(reachable[need] and need not in fails for need in run.inputs)
    for run in runs:
        name, state = run.address, summary.results[run.address].state
        if not reachable[name]:
            assert state is State.NOT_RUN
        elif name in fails:
            assert state is State.FAILED
        else:
            assert state is (State.DONE if needs[name] is Need.RUN else State.FOUND)
    in_place = {State.DONE, State.FOUND}
    for position, (event, name) in enumerate(world.happened):
        if event in ("decide", "put", "start"):
            there = {other for what, other in world.happened[:position] if what in in_place}
            assert set(next(run for run in runs if run.address == name).inputs) <= there
    assert len(set(world.names("start"))) == len(world.names("start"))
    assert len(set(world.names("record"))) == len(world.names("record"))
    changed = {name for name in names if summary.results[name].state in in_place and needs[name] is not Need.UNCHANGED}
    assert set(world.names("record")) == changed
    assert world.most <= world.places
    failed = [name for event, name in world.happened if event == "failed"]
    assert summary.exit_code == (summary.results[failed[0]].code if failed else 0)
