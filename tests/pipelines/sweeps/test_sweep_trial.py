"""What a trial measures of its stages, and what it says where there is nothing to measure."""

import json
import math
from types import SimpleNamespace

import pytest

from components.errors import DataError
from pipelines.schema.reading import read_yaml
from pipelines.scratch.folder import Scratch
from pipelines.sweeps import trial
from pipelines.sweeps.trial import TrialTask, measured, run_trial, scratch_of
from pipelines.workspace import Workspace

STAGE, FINGERPRINT = "gadms_finetune@gadms", "f" * 64
CURVE = [
    {"train/loss": 3.0, "val/R@1": 40.0},
    {"train/loss": 2.0, "val/R@1": 60.0},
    {"train/loss": 1.0, "val/R@1": 50.0},
]


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "root", tmp_path / "home")


def report(workspace, curve):
    """Write what the stage reports at steps 1, 2, ..."""
    scratch = scratch_of(STAGE, FINGERPRINT, workspace)
    scratch.folder.mkdir(parents=True, exist_ok=True)
    lines = ({"phase": "", "step": step, "time": 0.0, "metrics": metrics} for step, metrics in enumerate(curve, 1))
    scratch.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def value_of(workspace, metric, mode="max", pick="last", **metrics):
    outcome = SimpleNamespace(metrics=metrics, fingerprint=FINGERPRINT)
    objective = {"stage": STAGE, "metric": metric, "mode": mode, "pick": pick}
    return measured(objective, {STAGE: outcome}, workspace)


def test_an_objective_is_a_result_or_the_last_or_best_of_a_curve(workspace):
    report(workspace, CURVE)
    assert value_of(workspace, "selected.val/R@1", selected={"val/R@1": 61.0}) == 61.0
    assert value_of(workspace, "val/R@1") == 50.0
    assert value_of(workspace, "val/R@1", pick="best") == 60.0
    assert value_of(workspace, "train/loss", "min", "best") == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_objective_that_is_not_finite_is_refused_with_its_name(value, workspace):
    said = f"{STAGE}: score is {value}"
    report(workspace, [{"score": 1.0}, {"score": value}])
    for metrics in ({"score": value}, {}):
        with pytest.raises(DataError, match=said):
            value_of(workspace, "score", **metrics)
    assert value_of(workspace, "score", pick="best") == 1.0
    report(workspace, [{"score": value}])
    with pytest.raises(DataError, match=said):
        value_of(workspace, "score", pick="best")


def task_watching(metric, folder, workspace):
    return TrialTask(
        folder=str(folder),
        home=str(workspace.home),
        document={"seed": 0},
        seeds=[0],
        upstream=[],
        repeated=[STAGE],
        shared=str(folder),
        linked=[],
        given={},
        objectives=[{"stage": STAGE, "metric": "val/R@1", "mode": "max", "pick": "best"}],
        watch={"stage": STAGE, "metric": metric, "full": 3, "until": None},
        origin=None,
        members=str(folder),
        run="run",
    )


def test_a_watched_metric_that_is_never_reported_fails_the_trial(workspace, tmp_path, monkeypatch):
    def run_stage(address, inside, run):
        assert read_yaml(inside.path("params.yaml")) == {"seed": 0}
        report(workspace, CURVE)
        return SimpleNamespace(metrics={}, fingerprint=FINGERPRINT, restored=False)

    monkeypatch.setattr(trial, "run_stage", run_stage)
    monkeypatch.setattr(trial, "scratch_for", lambda address, inside: Scratch(tmp_path / "unwatched"))
    monkeypatch.setattr(trial, "find_by_fingerprint", lambda *of: SimpleNamespace(run="r", cost={}))
    ended = run_trial(task_watching("val/R@1", tmp_path / "right", workspace), lambda step, value: None)
    assert (ended["objectives"], ended["reports"]) == ([[60.0]], [(1, 40.0), (2, 60.0), (3, 50.0)])
    with pytest.raises(DataError) as refused:
        run_trial(task_watching("val/R@l", tmp_path / "misspelt", workspace), lambda step, value: None)
    assert str(refused.value) == (
        f"{STAGE} has not reported 'val/R@l', which the scheduler watches; it has train/loss, val/R@1"
    )
