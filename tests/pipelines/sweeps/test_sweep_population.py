"""A population's rounds: who stays, who goes on from whom, and with what; killed after every thing that its driver writes."""

import io
import json
from functools import cache

import pytest
import yaml
from dying_drivers import Killed, Runs, dying
from rich.console import Console

from components.errors import ParameterError
from pipelines import params
from pipelines.errors import StageFailedError
from pipelines.identity.closure import ROOT
from pipelines.sweeps.driver import Driver, Limits, Sweep
from pipelines.sweeps.journal import COMPLETE, STOPPED, Journal
from pipelines.sweeps.page import as_study, write_sweep_page
from pipelines.sweeps.plan import make_plan
from pipelines.sweeps.population import end_of_round, rounds
from pipelines.sweeps.progress import SweepProgress
from pipelines.sweeps.results import best_trial, summary
from pipelines.sweeps.rounds import KEPT
from pipelines.sweeps.spaces import Space, read_space
from pipelines.sweeps.validation import base_document, validate
from pipelines.workspace import Workspace

RATE, DECAY, CHANGES = (f"probe.training.{name}" for name in ("learning_rate", "weight_decay", "changes"))
SIZE, STEPS, EVERY = 8, 50, 20  # rounds to 20, 40 and 50
SPACE = {
    "about": "a test",
    "stages": ["probe"],
    "base": {"probe": {"training": {"steps": STEPS, "report_every": 10, "checkpoint_every": 5}}},
    "parameters": {
        RATE: {"loguniform": [0.0001, 0.1]},
        DECAY: {"uniform": [0.01, 0.2]},
        "probe.training.warmup_steps": {"choice": [1, 2]},
    },
    "points": [{}],
    "objectives": [{"stage": "probe", "metric": "probe/loss", "mode": "min"}],
    "searcher": "random",
    "scheduler": {
        "kind": "pbt",
        "stage": "probe",
        "metric": "probe/loss",
        "mode": "min",
        "full": "probe.training.steps",
        "every": EVERY,
    },
}


@cache
def own_params():
    return params.load(ROOT / "params.yaml")


def sweep_in(folder):
    space = Space.model_validate(SPACE)
    document = base_document(space, "test", own_params())
    (folder / "s").mkdir(parents=True)
    plan = make_plan(space.stages, space.parameters)
    journal = Journal(folder / "s")
    return Sweep("test", "test-1", space, document, own_params(), plan,
                 Workspace(folder, folder), [0, 7], journal, SIZE)  # fmt: skip


def driver_of(sweep):
    count = SIZE * rounds(sweep.space.population, sweep.document)
    console = Console(file=io.StringIO(), force_terminal=False)
    return Driver(sweep, Runs(), SweepProgress(sweep.space, count, 1, {}, console), Limits(count))


def loss(values, step):
    """A sum over the steps, as training is: the further the rate is from 0.01 / (1 + step / 10) at each, the higher."""
    whole = 0.0
    for now in range(step):
        rate = next((c["learning_rate"] for c in reversed(values[CHANGES]) if c["step"] <= now), values[RATE])
        whole += abs(rate / (0.01 / (1 + now / 10)) - 1)
    return whole / step + values["probe.training.warmup_steps"] / 100


def end(driver, trial):
    """What a trial's process says at the end of its round."""
    sweep = driver.sweep
    until = end_of_round(sweep.space.population, SIZE, trial.number, sweep.document)
    (sweep.folder(trial.number) / KEPT).mkdir(parents=True, exist_ok=True)
    reports = [[step, loss(trial.values, step)] for step in range(10, (until or STEPS) + 1, 10)]
    objectives = [] if until else [[reports[-1][1]] * 2]
    driver.finished(trial.number, {"objectives": objectives, "stages": [], "reports": reports, "seconds": 1.0})


def play(sweep, killed_after=None):
    """One trial at a time, to the end or until so many lines of the journal are written."""
    with dying(sweep.journal, killed_after):
        driver = driver_of(sweep)
        while (trial := driver.next_trial()) is not None:
            end(driver, trial)
        assert not driver.waits_for_round


def outcome(sweep):
    return {n: (t.values, t.state, t.origin, t.reports) for n, t in sweep.journal.trials().items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    sweep = sweep_in(tmp_path_factory.mktemp("undisturbed"))
    play(sweep)
    return sweep


def test_the_worst_quarter_goes_on_from_the_best_quarter_and_the_others_go_on_as_they_are(undisturbed):
    trials = list(undisturbed.journal.trials().values())
    assert [trial.state for trial in trials] == [STOPPED] * 16 + [COMPLETE] * 8
    assert all(trial.values[CHANGES] == [] and trial.origin is None for trial in trials[:SIZE])
    for first, step in ((8, 20), (16, 40)):
        before, after = trials[first - SIZE : first], trials[first : first + SIZE]
        order = sorted(before, key=lambda trial: trial.reports[step])
        best, worst = {trial.number for trial in order[:2]}, {trial.number for trial in order[-2:]}
        for old, new in zip(before, after, strict=True):
            if old.number not in worst:
                assert (new.values, new.origin) == (old.values, old.number)
                continue
            assert new.origin in best
            donor = trials[new.origin].values
            assert {**new.values, CHANGES: []} == {**donor, CHANGES: []}
            *earlier, change = new.values[CHANGES]
            assert earlier == donor[CHANGES]
            assert set(change) == {"step", "learning_rate", "weight_decay"}
            assert change["step"] == step
            assert 0.0001 <= change["learning_rate"] <= 0.1
            assert 0.01 <= change["weight_decay"] <= 0.2
        assert len({trial.key for trial in after}) == SIZE


def test_most_changes_multiply_by_a_factor(undisturbed, tmp_path):
    factors = []
    for seed in range(15):
        sweep = sweep_in(tmp_path / str(seed))
        sweep.document["seed"] = seed
        play(sweep)
        for trial in list(sweep.journal.trials().values())[SIZE : 2 * SIZE]:
            factors += [change["learning_rate"] / trial.values[RATE] for change in trial.values[CHANGES]]
    moved = sum(factor == pytest.approx(0.8, rel=1e-4) or factor == pytest.approx(1.25, rel=1e-4) for factor in factors)
    assert len(factors) == 30
    assert 0.55 < moved / len(factors) < 0.95  # 1 - resample, but for what the bounds cut off


def test_what_a_population_finds_is_better_than_its_best_member_without_changes(undisturbed):
    trials = list(undisturbed.journal.trials().values())
    best = best_trial(trials, undisturbed.space.objectives)
    assert best.values[CHANGES]
    assert best.means()[0] < min(loss(trial.values, STEPS) for trial in trials[:SIZE])


def test_killed_after_a_line_of_its_journal_a_population_ends_as_if_it_had_not_been(undisturbed, tmp_path):
    for killed_after in range(1, len(undisturbed.journal.events()), 7):  # of every kind, in every round
        sweep = sweep_in(tmp_path / str(killed_after))
        with pytest.raises(Killed):
            play(sweep, killed_after)
        play(sweep)
        assert outcome(sweep) == outcome(undisturbed), f"killed after line {killed_after}"


def test_a_round_begins_when_the_one_before_has_ended_in_whatever_order(undisturbed, tmp_path):
    sweep = sweep_in(tmp_path)
    driver = driver_of(sweep)
    assert driver.task(driver.next_trial()).seeds == [0]
    running = [driver.trials[0], *(driver.next_trial() for _ in range(SIZE - 1))]
    assert driver.next_trial() is None
    assert driver.waits_for_round
    for trial in reversed(running[1:]):
        end(driver, trial)
    assert driver.next_trial() is None
    assert driver.waits_for_round
    end(driver, running[0])
    trial = driver.next_trial()
    assert (trial.number, trial.values) == (SIZE, undisturbed.journal.trials()[SIZE].values)
    order = json.loads(driver.task(trial).to_json())
    assert order["watch"]["until"] == 2 * EVERY
    assert order["origin"] == str(sweep.folder(trial.origin) / KEPT)
    assert order["document"]["probe"]["training"]["changes"] == trial.values[CHANGES]


def test_only_the_last_rounds_checkpoints_are_kept(undisturbed):
    assert [n for n in range(3 * SIZE) if (undisturbed.folder(n) / KEPT).exists()] == list(range(SIZE, 3 * SIZE))


def test_a_member_that_fails_is_the_worst_and_gets_a_checkpoint_of_the_best(tmp_path):
    sweep = sweep_in(tmp_path)
    driver = driver_of(sweep)
    for number in range(SIZE):
        trial = driver.next_trial()
        driver.failed(number, "no memory") if number == 3 else end(driver, trial)
    order = sorted((n for n in range(SIZE) if n != 3), key=lambda n: driver.trials[n].reports[EVERY])
    for _ in range(SIZE):
        trial = driver.next_trial()
        end(driver, trial)
    assert driver.trials[SIZE + 3].origin in order[:2]
    moved = [n for n in range(SIZE) if driver.trials[SIZE + n].origin != n]
    assert moved == sorted([3, order[-1]])
    assert driver.failure is None


@pytest.mark.parametrize("reported", [[], [[10, 0.5]]])
def test_a_round_without_a_value_to_choose_by_ends_the_sweep_and_says_why(reported, tmp_path):
    sweep = sweep_in(tmp_path)
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    driver = Driver(sweep, Runs(), SweepProgress(sweep.space, 24, 1, {}, console), Limits(24))
    for number in range(SIZE):
        assert driver.next_trial().number == number
        driver.finished(number, {"objectives": [], "stages": [], "reports": reported, "seconds": 1.0})
    assert driver.next_trial() is None
    assert not driver.waits_for_round
    assert isinstance(driver.failure, StageFailedError)
    assert str(driver.failure) == "sweep test-1: no member of the population has reported probe/loss at step 20"
    assert str(driver.failure) in console.file.getvalue()
    assert "no new configuration" not in console.file.getvalue()


def test_a_member_that_is_lost_holds_its_round_until_it_was_started_again(tmp_path):
    driver = driver_of(sweep_in(tmp_path))
    for number in range(SIZE):
        trial = driver.next_trial()
        driver.failed(number, "its process was ended", -9) if number == 3 else end(driver, trial)
    assert driver.next_trial() is None
    assert not driver.waits_for_round  # so that Tune ends: nothing runs that could end the round
    assert driver.start_lost_trials_again()
    end(driver, driver.next_trial())
    assert driver.next_trial().number == SIZE


def check(name, folder):
    space = read_space(name, folder)
    validate(space, name, base_document(space, name, params.load(ROOT / "params.yaml")))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"scheduler": {**SPACE["scheduler"], "every": 50}}, "every 50 must be below probe.training.steps = 50"),
        ({"scheduler": {**SPACE["scheduler"], "every": 15}}, "multiple of probe.training.report_every = 10"),
        ({"scheduler": {**SPACE["scheduler"], "share": 0.6}}, "share"),
        ({"scheduler": {**SPACE["scheduler"], "grace": 5}}, "grace"),
        (
            {"parameters": {"probe.training.warmup_steps": {"int": [1, 4]}}},
            "changes probe.training.learning_rate and probe.training.weight_decay, and the parameters have neither",
        ),
        ({"base": {"compute": {"backend": "job", "storage": "/x"}, **SPACE["base"]}}, "set compute.backend to local"),
    ],
)
def test_a_population_that_cannot_be_is_one_line(change, error, tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SPACE, **change}))
    with pytest.raises(ParameterError, match=error) as raised:
        check("s", tmp_path)
    assert "\n" not in str(raised.value)


def test_its_page_draws_the_members_and_counts_those_given_up_as_stopped(undisturbed, tmp_path):
    trials = list(undisturbed.journal.trials().values())
    settings = {"run": "r", "revision": "", "seeds": [0], "base": {}}
    document = summary("test-1", "test", undisturbed.space, undisturbed.document, trials, settings)
    (tmp_path / "results.json").write_text(json.dumps(document))
    states = [trial.state.name for trial in as_study(json.loads((tmp_path / "results.json").read_text())).trials]
    assert (states.count("COMPLETE"), states.count("PRUNED")) == (SIZE, 4)  # two were given up after each of two rounds
    page = write_sweep_page(tmp_path / "results.json").read_text()
    assert "The population" in page
    assert "in rounds of 20 of 50 steps" in page
