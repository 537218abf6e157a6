"""What a sweep's driver decides and remembers, killed after every single thing that it writes."""

import io
import json
import shutil
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from dying_drivers import Killed, Runs, dying
from rich.console import Console
from scipy import stats

from components.errors import DataError
from pipelines import params
from pipelines.errors import InfrastructureError, StageFailedError, exit_code
from pipelines.identity.closure import ROOT
from pipelines.sweeps import tuning
from pipelines.sweeps.driver import Driver, Limits, Sweep
from pipelines.sweeps.journal import BROKEN, COMPLETE, STOPPED, WAITING, Journal, Trial
from pipelines.sweeps.options import SweepOptions
from pipelines.sweeps.plan import make_plan
from pipelines.sweeps.progress import SweepProgress
from pipelines.sweeps.results import best_trial, mean_with_interval, pareto_front, summary
from pipelines.sweeps.spaces import Space
from pipelines.sweeps.sweep import keep_other_results, open_sweep
from pipelines.sweeps.trial import _last_traceback
from pipelines.workspace import Workspace

RATE = "probe.training.learning_rate"
STEPS = 5
SPACE = {
    "about": "a test",
    "stages": ["probe"],
    "base": {},
    "parameters": {RATE: {"loguniform": [0.0001, 0.1]}, "probe.training.weight_decay": {"choice": [0.0, 0.1]}},
    "objectives": [{"stage": "probe", "metric": "probe/loss", "mode": "min"}],
    "scheduler": {
        "kind": "asha",
        "stage": "probe",
        "metric": "probe/loss",
        "mode": "min",
        "full": "probe.training.steps",
        "grace": 2,
        "reduction": 2,
    },
}


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self):
        return self.now


class Tuned:
    """A trial of Tune's, and the controller that has no other."""

    def __init__(self, trial_id):
        self.trial_id = trial_id

    def get_live_trials(self):
        return []


def quiet():
    return Console(file=io.StringIO(), force_terminal=False)


@cache
def own_params():
    return params.load(ROOT / "params.yaml")


def sweep_in(folder, **changes):
    space = Space.model_validate({**SPACE, **changes})
    settings = own_params()
    (folder / "s").mkdir(parents=True)
    document = settings.model_dump(mode="json")
    document["probe"]["training"]["steps"] = STEPS
    plan = make_plan(space.stages, space.parameters)
    return Sweep(
        "test", "test-1", space, document, settings, plan, Workspace(folder, folder), [0], Journal(folder / "s")
    )


def driver_of(sweep, samples=8, clock=None, **limits):
    clock = clock or Clock()
    progress = SweepProgress(sweep.space, samples, 1, {}, quiet(), clock)
    return Driver(sweep, Runs(), progress, Limits(samples, **limits), clock)


def loss(values, step):
    """Falls with the steps, and lies lower the nearer the rate is to 0.005."""
    away = abs(np.log10(values[RATE] / 0.005)) + values["probe.training.weight_decay"]
    return float(10 / step * (0.3 + away))


def play(driver, killed_after=None):
    """What Ray Tune does with one trial at a time, with its own scheduler; dies after the given number of journal lines."""
    with dying(driver.sweep.journal, killed_after):
        _play(driver)


def _play(driver):
    scheduler = tuning.scheduler_of(driver.sweep.space.scheduler, STEPS)
    if driver.sweep.space.scheduler:
        tuning.replay_reports(scheduler, driver.sweep.journal.events())
    while (trial := driver.next_trial()) is not None:
        tuned = Tuned(f"tune-{trial.number}")
        scheduler.on_trial_add(tuned, tuned)
        for step in range(1, STEPS + 1):
            told = {"step": step, "value": loss(trial.values, step)}
            if step == STEPS:
                whole = [[s, loss(trial.values, s)] for s in range(1, STEPS + 1)]
                facts = {"objectives": [[told["value"]]], "stages": [], "reports": whole, "seconds": 1.0}
                scheduler.on_trial_result(tuned, tuned, told)
                driver.finished(trial.number, facts)
                break
            decision = scheduler.on_trial_result(tuned, tuned, told)
            driver.reported(trial.number, seconds=0.1 * step, **told)
            if decision == "STOP":
                driver.stopped(trial.number)
                break


def outcome(sweep):
    trials = sweep.journal.trials()
    best = best_trial(list(trials.values()), sweep.space.objectives)
    return {n: (t.values, t.state, t.reports, t.objectives) for n, t in trials.items()}, best.number


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    sweep = sweep_in(tmp_path_factory.mktemp("undisturbed"))
    play(driver_of(sweep))
    found, best = outcome(sweep)
    states = [state for _, state, _, _ in found.values()]
    assert states.count(STOPPED) >= 3, "the scheduler must have something to decide"
    assert states.count(COMPLETE) >= 3
    return found, best, len(sweep.journal.events())


def test_a_sweep_killed_after_any_line_of_its_journal_ends_as_if_it_had_not_been(undisturbed, tmp_path):
    found, best, lines = undisturbed
    for killed_after in range(1, lines):
        sweep = sweep_in(tmp_path / str(killed_after))
        with pytest.raises(Killed):
            play(driver_of(sweep), killed_after)
        with open(sweep.journal.path, "a") as file:
            file.write('{"event": "repo')  # the kill tore a line
        play(driver_of(sweep))
        assert outcome(sweep) == (found, best), f"killed after line {killed_after}"
        suggested = [e["number"] for e in sweep.journal.events() if e["event"] == "suggested"]
        assert suggested == sorted(found)


def test_more_samples_go_on_from_those_that_are_done(undisturbed, tmp_path):
    found, best, _ = undisturbed
    sweep = sweep_in(tmp_path)
    for samples in (3, 5, 8):
        play(driver_of(sweep, samples))
    assert outcome(sweep) == (found, best)
    before = sweep.journal.path.read_bytes()
    assert not driver_of(sweep).has_work()
    play(driver_of(sweep))
    assert sweep.journal.path.read_bytes() == before


def test_what_is_stopped_when_time_is_up_is_paused_and_goes_on(tmp_path):
    sweep, clock = sweep_in(tmp_path, scheduler=None), Clock()
    driver = driver_of(sweep, clock=clock, minutes=1)
    trial = driver.next_trial()
    assert not driver.time_is_up()
    clock.now = 61.0
    assert driver.time_is_up()
    driver.stopped(trial.number)
    assert driver.next_trial() is None
    assert sweep.journal.trials()[0].state == WAITING
    again = driver_of(sweep).next_trial()
    assert (again.number, again.values) == (trial.number, trial.values)


def test_a_trial_that_fails_is_kept_with_its_error_and_the_next_one_comes(tmp_path):
    sweep = sweep_in(tmp_path, scheduler=None)
    driver = driver_of(sweep, 3)
    driver.failed(driver.next_trial().number, "the loss became NaN")
    second = driver.next_trial()
    driver.finished(second.number, {"objectives": [[0.5]], "stages": [], "reports": [], "seconds": 2.0})
    third = driver.next_trial()
    driver.failed(third.number, "no memory")
    assert driver.next_trial() is None
    assert driver.failure is None
    trials = sweep.journal.trials()
    assert [t.state for t in trials.values()] == [BROKEN, COMPLETE, BROKEN]
    assert trials[0].error == "the loss became NaN"
    found = summary("i", "test", sweep.space, sweep.document, list(trials.values()), {})
    assert (found["best"], found["counts"][BROKEN]) == (1, 2)


def test_a_sweep_whose_first_trials_all_fail_gives_up_and_says_why(tmp_path):
    driver = driver_of(sweep_in(tmp_path, scheduler=None))
    for _ in range(3):
        driver.failed(driver.next_trial().number, "no such metric")
    assert driver.next_trial() is None
    assert isinstance(driver.failure, StageFailedError)
    assert "first 3 trials failed" in str(driver.failure)
    assert "no such metric" in str(driver.failure)


def result(value):
    return {"objectives": [[value]], "stages": [], "reports": [], "seconds": 1.0}


def test_a_trial_that_lost_its_storage_or_memory_is_started_again_when_the_others_have_ended(tmp_path):
    sweep = sweep_in(tmp_path, scheduler=None)
    driver = driver_of(sweep, 3)
    first = driver.next_trial()
    driver.failed(first.number, "the storage is away", 75)
    assert not driver.runs_now(first.number)
    for value in (1.0, 2.0):
        driver.finished(driver.next_trial().number, result(value))
    assert driver.next_trial() is None
    for status in (-9, 75):
        assert driver.start_lost_trials_again()
        assert driver.next_trial() is first
        assert driver.runs_now(first.number)
        driver.failed(first.number, "its process was ended", status)
        assert driver.next_trial() is None
    assert not driver.start_lost_trials_again()  # max_failures is 2
    assert exit_code(driver.failure) == 75
    assert "1 trials wait, the last broke off with: its process was ended" in str(driver.failure)
    assert sweep.journal.trials()[0].state == WAITING  # and not failed for ever
    again = driver_of(sweep, 3).next_trial()
    assert (again.number, again.values) == (first.number, first.values)


def test_when_the_first_trials_are_all_lost_no_further_ones_are_begun_before_they_run_again(tmp_path):
    driver = driver_of(sweep_in(tmp_path, scheduler=None))
    for _ in range(3):
        driver.failed(driver.next_trial().number, "the storage is away", 75)
    assert driver.next_trial() is None
    assert driver.failure is None
    assert driver.start_lost_trials_again()
    assert [driver.next_trial().number for _ in range(4)] == [0, 1, 2, 3]


def test_a_bug_is_recorded_at_once_and_its_traceback_is_shown(tmp_path):
    sweep, console = sweep_in(tmp_path, scheduler=None), quiet()
    progress = SweepProgress(sweep.space, 2, 1, {}, console, Clock())
    driver = Driver(sweep, Runs(), progress, Limits(2), Clock())
    driver.failed(driver.next_trial().number, "a bug", 1, "Traceback (most recent call last):\nTypeError: a bug")
    assert sweep.journal.trials()[0].state == BROKEN
    assert "Traceback (most recent call last):\nTypeError: a bug\n" in console.file.getvalue()
    assert not driver.start_lost_trials_again()


def test_the_last_traceback_of_a_trials_log_is_the_one_that_is_shown(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text(
        "Traceback (most recent call last):\nKeyError: before\n\nTraceback (most recent call last):\nTypeError: now\n"
    )
    assert _last_traceback(log) == "Traceback (most recent call last):\nTypeError: now"
    log.write_text("error: steps = 0\n")
    assert _last_traceback(log) == ""


def test_an_interrupted_trial_waits_for_the_next_call(tmp_path):
    sweep = sweep_in(tmp_path, scheduler=None)
    driver = driver_of(sweep, 1)
    driver.failed(driver.next_trial().number, "interrupted", 130)
    assert not driver.start_lost_trials_again()
    assert sweep.journal.trials()[0].state == WAITING


@pytest.mark.parametrize("gpus", [0.5, 8.0])
def test_gpu_hours_end_a_sweep(gpus, tmp_path):
    driver = driver_of(sweep_in(tmp_path, scheduler=None), gpu_hours=gpus, gpus=gpus)
    driver.finished(driver.next_trial().number, {**result(1.0), "seconds": 3500.0})
    driver.finished(driver.next_trial().number, {**result(1.0), "seconds": 200.0})
    assert driver.next_trial() is None


def test_one_sweep_has_one_driver(tmp_path):
    journal = Journal(tmp_path)
    with (
        journal.lock(),
        pytest.raises(InfrastructureError, match="another process runs this sweep"),
        Journal(tmp_path).lock(),
    ):
        pass


def test_a_journal_damaged_in_the_middle_is_not_read_over(tmp_path):
    journal = Journal(tmp_path)
    journal.write("suggested", 0, values={"a": 1})
    journal.path.write_text("{broken\n" + journal.path.read_text())
    with pytest.raises(DataError, match="a line is damaged"):
        journal.trials()


def test_a_schedulers_memory_of_a_median_is_restored(tmp_path):
    scheduler = {**SPACE["scheduler"], "kind": "median"}
    whole, cut = sweep_in(tmp_path / "a", scheduler=scheduler), sweep_in(tmp_path / "b", scheduler=scheduler)
    play(driver_of(whole))
    with pytest.raises(Killed):
        play(driver_of(cut), len(whole.journal.events()) // 2)
    play(driver_of(cut))
    assert outcome(cut) == outcome(whole)


def test_a_mean_over_seeds_has_students_interval():
    values = [1.0, 2.0, 4.0, 3.5]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert mean_with_interval(values) == pytest.approx({"mean": 2.625, "low": low, "high": high})
    assert mean_with_interval([2.0]) == {"mean": 2.0}
    assert mean_with_interval([]) == {}


def test_the_mean_over_seeds_picks_the_winner_and_not_the_luckiest_seed():
    objectives = Space.model_validate(
        {**SPACE, "objectives": [{"stage": "probe", "metric": "m", "mode": "max"}]}
    ).objectives
    lucky = Trial(0, {"a": 0}, state=COMPLETE, objectives=[[9.0, 1.0, 1.0]])
    steady = Trial(1, {"a": 1}, state=COMPLETE, objectives=[[5.0, 5.0, 5.0]])
    stopped = Trial(2, {"a": 2}, state=STOPPED, reports={1: 99.0})
    assert best_trial([lucky, steady, stopped], objectives) is steady
    assert best_trial([stopped], objectives) is None


def test_the_pareto_front_is_what_nothing_beats():
    random = np.random.default_rng(0)
    points = random.integers(0, 6, (40, 2)).astype(float)
    objectives = [SimpleNamespace(mode="max"), SimpleNamespace(mode="min")]
    trials = [Trial(n, {"n": n}, state=COMPLETE, objectives=[[a], [b]]) for n, (a, b) in enumerate(points)]
    brute = [
        n for n, (a, b) in enumerate(points) if not any((c >= a and d <= b) and (c > a or d < b) for c, d in points)
    ]
    assert [trial.number for trial in pareto_front(trials, objectives)] == brute


def test_without_a_terminal_a_sweep_says_a_line_a_trial(tmp_path):
    sweep, console, clock = sweep_in(tmp_path, scheduler=None), quiet(), Clock()
    progress = SweepProgress(sweep.space, 2, 1, {}, console, clock)
    driver = Driver(sweep, Runs(), progress, Limits(2), clock)
    with progress:
        driver.reported(driver.next_trial().number, 4, 0.75, 1.0)
        driver.finished(0, {"objectives": [[0.5]], "stages": [], "reports": [], "seconds": 20.0})
        driver.next_trial()
    first, second, third = console.file.getvalue().splitlines()
    assert first.startswith("trial 0: learning_rate ")
    assert second == "trial 0: probe/loss 0.5 (20.0 s); 1/2, best 0.5 (trial 0), about 0:20 left"
    assert third.startswith("trial 1: ")


def test_on_a_terminal_a_table_shows_what_runs_and_how_far_it_is(tmp_path):
    console, clock = Console(file=io.StringIO(), force_terminal=True, width=100), Clock()
    sweep = sweep_in(tmp_path, scheduler=None)
    progress = SweepProgress(sweep.space, 2, 1, {}, console, clock)
    driver = Driver(sweep, Runs(), progress, Limits(2), clock)
    driver.reported(driver.next_trial().number, 4, 0.75, 1.0)
    clock.now = 65.0
    console.print(progress.render())
    shown = console.file.getvalue()
    assert "0/2" in shown
    assert "step 4: 0.75" in shown
    assert "1:05" in shown


def test_another_data_set_at_the_same_path_is_another_sweep(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    captions = tmp_path / "data/raw/reid_raw.json"
    captions.parent.mkdir(parents=True)
    options = SweepOptions("gadms", 2, 1, 1, None, None, False, None, False, ROOT / "pipelines/sweeps")
    names = []
    for content in ("one", "two", "one"):
        captions.write_text(content)
        names.append(open_sweep(options, Workspace(tmp_path, tmp_path / "home")).identity)
    assert names[0] == names[2]
    assert names[0] != names[1]


def test_the_results_of_another_sweep_of_this_name_are_kept_and_said(tmp_path):
    sweep, console = sweep_in(tmp_path), quiet()
    progress = SweepProgress(sweep.space, 2, 1, {}, console, Clock())
    file = tmp_path / "results/sweeps/test.json"
    keep_other_results(sweep, progress)  # none
    file.parent.mkdir(parents=True)
    for identity in ("test-1", "test-0"):
        file.write_text(json.dumps({"sweep": identity}))
        keep_other_results(sweep, progress)
        assert file.exists() == (identity == "test-1")
    kept = tmp_path / "results/sweeps/test-0.json"
    assert json.loads(kept.read_text()) == {"sweep": "test-0"}
    assert str(kept) in console.file.getvalue().replace("\n", "")


def test_an_order_says_all_that_a_trial_needs(tmp_path):
    sweep = sweep_in(tmp_path)
    driver = driver_of(sweep)
    trial = driver.next_trial()
    order = json.loads(driver.task(trial).to_json())
    assert order["document"]["probe"]["training"]["learning_rate"] == trial.values[RATE]
    assert order["document"]["compute"] == sweep.document["compute"]
    assert (order["upstream"], order["repeated"], order["linked"]) == ([], ["probe"], ["data/people"])
    assert order["watch"] == {"stage": "probe", "metric": "probe/loss", "full": STEPS, "until": None}
    assert order["given"] == {"data/raw": str(tmp_path / "data/raw")}
