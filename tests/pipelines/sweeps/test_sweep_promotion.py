"""Promotion: a trial's values in params.yaml, with comments kept, the difference shown, and the origin on both sides."""

import json
import shutil

import pytest
from repositories import git, make_repository

from components.errors import DataError, ParameterError
from pipelines import params
from pipelines.identity.closure import ROOT
from pipelines.provenance import sweep_claims
from pipelines.sweeps.journal import BROKEN, COMPLETE, STOPPED, WAITING, Trial
from pipelines.sweeps.spaces import Space
from pipelines.workspace import Workspace

RATE, STREAMS = "gadms_finetune.training.learning_rate", "taca.streams"
SPACE = Space.model_validate(
    {
        "about": "a test",
        "stages": ["gadms_finetune@gadms"],
        "base": {"prepare": {"identities": {"train": 40}}, "seed": 0},
        "parameters": {RATE: {"choice": [0.001, 0.002]}, STREAMS: {"choice": [["double"], ["double", "single"]]}},
        "objectives": [{"stage": "gadms_finetune@gadms", "metric": "val/R@1", "mode": "max"}],
        "scheduler": {
            "kind": "asha",
            "stage": "gadms_finetune@gadms",
            "metric": "val/R@1",
            "mode": "max",
            "full": "gadms_finetune.training.steps",
            "grace": 100,
        },
    }
)
STAGE = {"stage": "gadms_finetune@gadms", "seed": 0, "fingerprint": "f" * 64, "run": "5" * 32, "restored": False}


@pytest.fixture
def workspace(tmp_path, empty_store, monkeypatch):
    (tmp_path / "ws").mkdir()
    shutil.copy(ROOT / "params.yaml", tmp_path / "ws")
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("PIPELINES_HOME", str(tmp_path / "home"))
    root = tmp_path / "ws"
    return Workspace.at(make_repository(root))


@pytest.fixture
def swept(workspace):
    """A sweep of four trials as its driver writes it; returns (runs, trials)."""
    from pipelines.sweeps.sweep_runs import SweepRuns
    from pipelines.tracking import runs as tracking

    runs = SweepRuns(tracking.connect(workspace), "gadms-1", SPACE)
    trials = [
        Trial(0, {RATE: 0.001, STREAMS: ["double"]}, COMPLETE, {100: 1.0}, [[40.0]], [STAGE], seconds=3.0),
        Trial(1, {RATE: 0.002, STREAMS: ["double"]}, COMPLETE, {100: 2.0}, [[45.0, 47.0]], [STAGE], seconds=3.0),
        Trial(2, {RATE: 0.001, STREAMS: ["double", "single"]}, STOPPED, {100: 0.0}, seconds=1.0),
        Trial(3, {RATE: 0.002, STREAMS: ["double", "single"]}, BROKEN, error="no memory"),
    ]
    for trial in trials:
        trial.run = runs.trial(trial)
        runs.end(trial.run, trial)
    runs.close("FINISHED", trials, trials[1])
    return runs, trials


def promoted(workspace, run, **options):
    from pipelines.sweeps.promotion import promote

    promote(run, workspace, **options)


def test_the_best_trial_of_a_sweep_goes_into_params_with_comments_kept(workspace, swept, capsys):
    runs, trials = swept
    before = (workspace.root / "params.yaml").read_text()
    promoted(workspace, runs.parent)
    after = (workspace.root / "params.yaml").read_text()
    assert params.load(workspace.root / "params.yaml").gadms_finetune.training.learning_rate == 0.002
    assert params.load(workspace.root / "params.yaml").taca.streams == ("double",)
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert [line.split("#")[0].strip() for line in changed] == ["streams: [double]", "learning_rate: 0.002"]
    assert changed[0].endswith("# blocks with separate weights for text, and blocks with shared weights")
    said = capsys.readouterr().out
    assert "-  streams: [double, single]" in said
    assert "+    learning_rate: 0.002" in said
    assert f"trial 1 of sweep gadms-1, MLflow run {trials[1].run}" in said
    assert "prepare.identities.train = 40" in said
    tag = runs.client.get_run(trials[1].run).data.tags["pipelines.promoted"]
    assert tag == f"params.yaml at {git(workspace.root, 'rev-parse', 'HEAD')}"


def test_the_whole_trial_takes_the_base_of_its_sweep_along(workspace, swept):
    _, trials = swept
    promoted(workspace, trials[0].run, whole=True)
    now = params.load(workspace.root / "params.yaml")
    assert (now.prepare.identities["train"], now.gadms_finetune.training.learning_rate) == (40, 0.001)


def test_a_mapping_of_the_base_in_place_of_a_plain_value_is_one_value(workspace, capsys):
    from pipelines.sweeps.sweep_runs import SweepRuns
    from pipelines.tracking import runs as tracking

    rule = {"sigma": 0.97, "tokens": 4096}
    space = SPACE.model_copy(update={"base": {"taca": {"threshold": rule, "gamma": 1.1}}})
    runs = SweepRuns(tracking.connect(workspace), "gadms-1", space)
    trial = Trial(0, {RATE: 0.002}, COMPLETE, objectives=[[40.0]])
    runs.close("FINISHED", [trial], trial)
    before = params.load(workspace.root / "params.yaml").taca
    assert before.threshold != rule
    promoted(workspace, trial.run)
    now = params.load(workspace.root / "params.yaml")
    assert (now.taca, now.gadms_finetune.training.learning_rate) == (before, 0.002)
    assert f"the sweep also had taca.gamma = 1.1, taca.threshold = {rule}; --whole" in capsys.readouterr().out
    for _ in range(2):  # once over a plain value, once over itself
        promoted(workspace, runs.parent, whole=True)
        now = params.load(workspace.root / "params.yaml").model_dump(mode="json")["taca"]
        assert (now["threshold"], now["gamma"]) == (rule, 1.1)


def test_a_commit_holds_params_alone_and_names_its_origin(workspace, swept, monkeypatch):
    runs, trials = swept
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@localhost")
    (workspace.root / "other").write_text("mine")
    git(workspace.root, "add", "other")
    promoted(workspace, trials[1].run, commit=True)
    assert git(workspace.root, "show", "--name-only", "--format=%s").splitlines()[-1] == "params.yaml"
    message = git(workspace.root, "show", "--no-patch", "--format=%B")
    assert trials[1].run in message
    assert "46" in message
    assert git(workspace.root, "diff", "--cached", "--name-only") == "other"
    tag = runs.client.get_run(trials[1].run).data.tags["pipelines.promoted"]
    assert tag == f"commit {git(workspace.root, 'rev-parse', 'HEAD')}"


def test_edits_of_ones_own_are_not_committed_along(workspace, swept):
    _, trials = swept
    with open(workspace.root / "params.yaml", "a") as file:
        file.write("# mine\n")
    with pytest.raises(DataError, match="not committed"):
        promoted(workspace, trials[1].run, commit=True)


def test_a_run_that_is_no_trial_is_refused(workspace, swept):
    runs, _ = swept
    with pytest.raises(ParameterError, match="not the run of a trial"):
        promoted(workspace, runs.shared())
    with pytest.raises(DataError, match="no run"):
        promoted(workspace, "0" * 32)


@pytest.mark.parametrize(("number", "reason"), [(2, "was stopped before its end"), (3, r"failed \(no memory\)")])
def test_a_trial_without_a_result_is_promoted_only_when_told_so(workspace, swept, number, reason):
    _, trials = swept
    before = (workspace.root / "params.yaml").read_text()
    with pytest.raises(
        ParameterError, match=f"trial {number} of sweep gadms-1 {reason}: choose another, or say --anyway"
    ):
        promoted(workspace, trials[number].run)
    assert (workspace.root / "params.yaml").read_text() == before
    promoted(workspace, trials[number].run, anyway=True)
    assert (
        params.load(workspace.root / "params.yaml").gadms_finetune.training.learning_rate == trials[number].values[RATE]
    )
    assert sweep_claims.promoted(workspace.home / "sweeps/gadms-1") == [number]


def test_runs_of_a_sweep_say_how_each_trial_ended(swept):
    runs, trials = swept
    found = {trial.number: runs.client.get_run(trial.run) for trial in trials}
    assert [found[n].info.status for n in range(4)] == ["FINISHED", "FINISHED", "KILLED", "FAILED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {runs.parent}
    metrics = found[1].data.metrics
    assert metrics["objective/gadms_finetune_gadms/val/R_1"] == 46.0
    assert metrics["objective/gadms_finetune_gadms/val/R_1.low"] < 46.0
    assert found[1].data.tags["stage.gadms_finetune.gadms"] == "5" * 32
    assert found[3].data.tags["pipelines.error"] == "no memory"
    assert found[0].data.params[RATE] == "0.001"
    assert [(p.step, p.value) for p in runs.client.get_metric_history(trials[1].run, "val/R_1")] == [(100, 2.0)]
    assert runs.client.get_run(runs.parent).info.status == "FINISHED"


def test_a_sweep_that_goes_on_goes_on_in_its_runs(workspace, swept):
    from pipelines.sweeps.sweep_runs import SweepRuns
    from pipelines.tracking import runs as tracking

    runs, trials = swept
    again = SweepRuns(tracking.connect(workspace), "gadms-1", SPACE)
    assert again.parent == runs.parent
    assert [again.trial(trial) for trial in trials] == [trial.run for trial in trials]
    assert SweepRuns(tracking.connect(workspace), "gadms-2", SPACE).parent != runs.parent


def test_what_a_kill_left_open_is_closed_when_the_sweep_ends(workspace, swept):
    from pipelines.sweeps.sweep_runs import SweepRuns
    from pipelines.tracking import runs as tracking

    _, trials = swept
    again = SweepRuns(tracking.connect(workspace), "gadms-1", SPACE)
    again.trial(trials[0])  # marks it as running, and is killed
    begun = Trial(4, {RATE: 0.001}, WAITING)
    again.trial(begun)
    again.close("KILLED", [*trials, begun], None)
    assert len(again.client.get_metric_history(trials[0].run, "objective/gadms_finetune_gadms/val/R_1")) == 1
    statuses = {run.data.tags["pipelines.trial"]: run.info.status for run in again._search("trial")}
    assert statuses == {"0": "FINISHED", "1": "FINISHED", "2": "KILLED", "3": "FAILED", "4": "KILLED"}


def test_a_sweep_can_learn_from_the_finished_trials_of_another(workspace, swept):
    from pipelines.sweeps.sweep_runs import earlier_trials
    from pipelines.tracking import runs as tracking

    runs, trials = swept
    tracker = tracking.connect(workspace)
    found = earlier_trials(tracker, runs.parent, SPACE)
    assert [(t.values, t.means()) for t in found] == [(trials[0].values, [40.0]), (trials[1].values, [46.0])]
    other = SPACE.model_copy(update={"objectives": [SPACE.objectives[0].model_copy(update={"metric": "val/mAP"})]})
    with pytest.raises(ParameterError, match="none of its trials"):
        earlier_trials(tracker, runs.parent, other)
    with pytest.raises(ParameterError, match="not the run of a sweep"):
        earlier_trials(tracker, trials[0].run, SPACE)


def test_a_server_that_goes_away_costs_a_warning_and_is_told_later(swept, monkeypatch, capsys):
    runs, trials = swept
    trials[2].state, trials[2].objectives = COMPLETE, [[50.0]]

    def away(*told, **more):
        raise ConnectionError("nobody there")

    with monkeypatch.context() as patch:
        patch.setattr(runs.client, "log_batch", away)
        runs.end(trials[2].run, trials[2])
    assert "the sweep continues" in capsys.readouterr().err
    runs.close("FINISHED", trials, trials[2])
    run = runs.client.get_run(trials[2].run)
    assert (run.info.status, run.data.metrics["objective/gadms_finetune_gadms/val/R_1"]) == ("FINISHED", 50.0)
    assert runs.client.get_run(runs.parent).data.tags["pipelines.best"] == trials[2].run
    assert json.loads(run.data.tags["pipelines.values"]) == trials[2].values
