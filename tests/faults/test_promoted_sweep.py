"""A trial promoted as a DVC experiment, in a copy of the checkout: nothing is trained again, and DVC and MLflow agree."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import clean_environment
from workspaces import FROM_NOTHING

from pipelines import presets

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

OFTEN = {"batch": 8, "report_every": 5, "checkpoint_every": 5}
SMALL = {
    "prepare": {"identities": {"train": 12, "val": 4, "test": 4}, "caption_noise": 0.0},
    "probe": {**FROM_NOTHING["probe"], "training": {"steps": 20, **OFTEN}},
    "compute": {"threads": 1, "device": "cpu"},
}
SPACE = {
    "about": "a probe",
    "stages": ["probe"],
    "parameters": {"probe.training.learning_rate": {"choice": [0.0001, 0.02]}},
    "objectives": [{"stage": "probe", "metric": "balanced_accuracy", "mode": "max"}],
    "searcher": "grid",
}


def test_dvc_and_mlflow_agree_on_a_trial_that_was_promoted_to_a_branch(copy_of_the_checkout, tmp_path):
    root = copy_of_the_checkout(tmp_path / "checkout")
    who = {f"GIT_{one}_{what}": "test@localhost" for one in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = clean_environment(**who, PATH=path, DVC_NO_ANALYTICS="1")

    def run(*command):
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    presets.edit(root / "params.yaml", SMALL)
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "rates.yaml").write_text(yaml.safe_dump(SPACE, sort_keys=False))
    run("git", "commit", "--quiet", "-am", "small")
    run(sys.executable, "-m", "pipelines", "sweep", "rates", "--samples", "2", "--folder", str(tmp_path / "spaces"))
    results = json.loads((root / "results/sweeps/rates.json").read_text())
    best = results["trials"][results["best"]]
    (objective,) = best["objectives"].values()

    said = run(sys.executable, "-m", "pipelines", "promote", results["run"], "--branch", "winner")
    rate = best["values"]["probe.training.learning_rate"]
    assert f"learning_rate: {rate}" in said
    committed = yaml.safe_load(run("git", "show", "winner:params.yaml"))
    assert committed["probe"]["training"]["learning_rate"] == rate
    metrics = json.loads(run("git", "show", "winner:metrics/probe/all.json"))
    shown = json.loads(run(sys.executable, "-m", "dvc", "exp", "show", "--json"))
    experiments = [
        revision["rev"]
        for commit in shown
        for experiment in commit.get("experiments") or []
        for revision in experiment["revs"]
        if revision["data"]["params"]["params.yaml"]["data"]["probe"]["training"]["learning_rate"] == rate
    ]
    assert experiments
    tables = [json.loads(run("git", "show", f"{one}:metrics/probe/all.json")) for one in experiments]
    assert {table["balanced_accuracy"] for table in [*tables, metrics]} == {objective["mean"]}

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    made = client.get_run(best["stages"][-1]["run"])
    assert made.data.metrics["balanced_accuracy"] == objective["mean"]
    assert client.get_run(best["run"]).data.tags["pipelines.promoted"] == "branch winner"
    (experiment,) = client.search_experiments(filter_string="name = 'crossmodal-pipelines'")
    probes = client.search_runs([experiment.experiment_id], "tags.`pipelines.stage` = 'probe'")
    assert len(probes) == len(results["trials"]), "the experiment trained nothing"
