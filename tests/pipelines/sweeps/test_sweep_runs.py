"""The same sweep in several scratch roots, with one MLflow store: each has its own runs, and finds those of older code."""

import json
import shutil

import pytest

from pipelines.sweeps.journal import COMPLETE, Journal, Trial
from pipelines.sweeps.promotion import find_winner
from pipelines.sweeps.spaces import Space
from pipelines.sweeps.sweep_runs import FOLDER_ID, SweepRuns, earlier_trials
from pipelines.tracking import runs as tracking
from pipelines.workspace import Workspace

RATE, SWEEP = "probe.training.learning_rate", "probe-0123456789"
SPACE = Space.model_validate(
    {
        "about": "a test",
        "stages": ["probe"],
        "parameters": {RATE: {"loguniform": [0.0001, 0.1]}},
        "objectives": [{"stage": "probe", "metric": "score", "mode": "max"}],
    }
)


@pytest.fixture
def connected(tmp_path, empty_store, monkeypatch):
    """A function of a person's name: the tracker of a scratch root of that person's, on the store of all."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return lambda person: tracking.connect(Workspace(tmp_path / person, tmp_path / person))


def finish(runs, rates):
    """What a driver writes of trials with these rates; the score of each is 100 times its rate."""
    trials = [Trial(number, {RATE: rate}) for number, rate in enumerate(rates)]
    for trial in trials:
        trial.run = runs.trial(trial)
        trial.state, trial.objectives = COMPLETE, [[100 * trial.values[RATE]]]
        runs.end(trial.run, trial)
    runs.close("FINISHED", trials, max(trials, key=Trial.means))
    return trials


def write_journal(home, trials):
    """Write the journal of a folder without an id in which these trials were run."""
    journal = Journal.of_sweep(SWEEP, home)
    journal.root.mkdir(parents=True, exist_ok=True)
    journal.id_file.unlink(missing_ok=True)
    for trial in trials:
        journal.write("suggested", trial.number, values=trial.values, origin=None)
        if trial.state == COMPLETE:
            journal.write("ended", trial.number, state=COMPLETE, run=trial.run, objectives=trial.objectives)


def below(runs):
    return {run.info.run_id for run in runs._search("trial", {tracking.PARENT: runs.parent})}


def test_two_people_with_the_same_sweep_have_each_their_own_runs_and_values(connected):
    ann, bob = (SweepRuns(connected(person), SWEEP, SPACE) for person in ("ann", "bob"))
    of_ann, of_bob = finish(ann, [0.01, 0.05, 0.02]), finish(bob, [0.01, 0.002, 0.03])
    assert ann.parent != bob.parent
    assert ann.shared() != bob.shared()
    for runs, trials, best in ((ann, of_ann, 1), (bob, of_bob, 2)):
        assert below(runs) == {trial.run for trial in trials}
        for run in (runs.parent, trials[best].run):
            winner = find_winner(runs.tracker, run)
            assert (winner.run_id, winner.values) == (trials[best].run, trials[best].values)
            assert list(winner.objectives.values()) == trials[best].means()
        learned = earlier_trials(runs.tracker, runs.parent, SPACE)
        assert [(trial.values, trial.means()) for trial in learned] == [(t.values, t.means()) for t in trials]
    again = SweepRuns(connected("bob"), SWEEP, SPACE)
    assert (again.parent, [again.trial(trial) for trial in of_bob]) == (bob.parent, [trial.run for trial in of_bob])


def test_the_id_of_a_folder_is_made_once(tmp_path):
    journal = Journal.of_sweep(SWEEP, tmp_path)
    with journal.lock():
        first = journal.folder_id()
    assert Journal(tmp_path / "sweeps" / SWEEP).folder_id() == first
    assert Journal.of_sweep(SWEEP, tmp_path / "other").folder_id() != first


@pytest.fixture
def older(connected):
    """The runs and trials of a sweep that code without ids has made in Ann's folder: the last of three has not ended."""
    runs = SweepRuns(connected("ann"), SWEEP, SPACE)
    trials = finish(runs, [0.01, 0.05])
    trials.append(Trial(2, {RATE: 0.02}))
    trials[2].run = runs.trial(trials[2])
    write_journal(runs.workspace.home, trials)
    runs.client.delete_tag(runs.parent, FOLDER_ID)
    return runs, trials


def test_the_folder_of_a_sweep_of_older_code_finds_its_runs(connected, older):
    before, trials = older
    other = SweepRuns(connected("bob"), SWEEP, SPACE)  # has no journal that names them
    assert other.parent != before.parent
    again = SweepRuns(connected("ann"), SWEEP, SPACE)
    assert again.parent == before.parent
    assert [again.trial(trial) for trial in trials] == [trial.run for trial in trials]
    again.close("FINISHED", trials, trials[1])
    assert below(again) == {trial.run for trial in trials}
    assert SweepRuns(connected("ann"), SWEEP, SPACE).parent == before.parent


def test_of_two_folders_that_shared_the_runs_of_older_code_each_ends_with_its_own_values(connected, older):
    before, trials = older
    # Bob's trials have the same runs, and the second one other values: it was written into the run of Ann's.
    bobs = [Trial(0, {RATE: 0.01}), Trial(1, {RATE: 0.07}), Trial(2, {RATE: 0.03})]
    for mine, of_ann in zip(bobs, trials, strict=True):
        mine.run, mine.state, mine.objectives = of_ann.run, COMPLETE, [[100 * mine.values[RATE]]]
    write_journal(connected("bob").workspace.home, bobs)
    bob = SweepRuns(connected("bob"), SWEEP, SPACE)
    assert bob.parent == before.parent  # the first to come has it
    bob.close("FINISHED", bobs, bobs[1])
    ann = SweepRuns(connected("ann"), SWEEP, SPACE)
    assert ann.parent != bob.parent
    ann.close("FINISHED", trials, trials[1])
    for runs, ended, values in ((bob, bobs, {RATE: 0.07}), (ann, trials, {RATE: 0.05})):
        winner = find_winner(runs.tracker, runs.parent)
        assert (winner.run_id, winner.values) == (ended[1].run, values)
        tags = {trial.run: runs.client.get_run(trial.run).data.tags for trial in ended if trial.state == COMPLETE}
        assert [json.loads(each["pipelines.values"]) for each in tags.values()] == [
            t.values for t in ended if t.run in tags
        ]
        assert {each[tracking.PARENT] for each in tags.values()} == {runs.parent}
