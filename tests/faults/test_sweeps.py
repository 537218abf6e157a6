"""Sweeps in real processes: work that trials share, drivers and trials that are killed, trials that fail, workers that train.

Each at sizes that prove plumbing.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter

import psutil
import pytest
import yaml
from processes import wait_until
from workspaces import FROM_NOTHING

from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import tree_digests

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

OFTEN = {"batch": 8, "report_every": 2, "checkpoint_every": 2}
SMALL = {
    "prepare": {"identities": {"train": 12, "val": 4, "test": 4}, "caption_noise": 0.0},
    "probe": {**FROM_NOTHING["probe"], "training": {"steps": 30, **OFTEN}},
    "base_model": {
        **FROM_NOTHING["base_model"],
        "autoencoder": {"steps": 2, **OFTEN},
        "training": {"steps": 2, **OFTEN},
    },
    "taca_cache": {"batch": 8},
    "compute": {"threads": 1, "device": "cpu"},
}
RATE = "probe.training.learning_rate"
LOSS = {"stage": "probe", "metric": "probe/loss", "mode": "min"}
ASHA = {"kind": "asha", **LOSS, "full": "probe.training.steps", "grace": 6, "reduction": 2}
PROBE = {
    "about": "a probe",
    "stages": ["probe"],
    "base": SMALL,
    "parameters": {RATE: {"loguniform": [0.0001, 0.02]}},
    "objectives": [LOSS],
}
CHAIN = {
    "about": "what one of two bases makes of the captions",
    "stages": ["taca_cache"],
    "base": SMALL,
    "parameters": {
        "base_model.caption_dropout": {"choice": [0.0, 0.3]},
        "taca_cache.captions": {"choice": [4, 8, 12, 16]},
    },
    "objectives": [{"stage": "taca_cache", "metric": "captions", "mode": "max"}],
    "searcher": "grid",
}


class Sweeps:
    """A workspace, and the sweep command in it."""

    def __init__(self, place, folder):
        self.place, self.folder = place, folder
        folder.mkdir()

    def start(self, space, samples, *options):
        (self.folder / "small.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
        verb = ["sweep", "small", "--samples", str(samples), "--folder", str(self.folder), *options]
        with open(self.folder / "output", "ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "pipelines", "--workspace", str(self.place.root), *verb],
                cwd=ROOT,
                env=self.place._environment({}),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, space, samples, *options, code=0):
        process = self.start(space, samples, *options)
        assert process.wait(800) == code, self.said()
        return json.loads((self.place.root / "results/sweeps/small.json").read_text())

    def kill_at(self, process, lines):
        """Kill the driver as soon as its journal has so many lines."""
        wait_until(lambda: len(self.journal()) >= lines, process, 300, self.said, pause=0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)

    def said(self):
        return (self.folder / "output").read_text()

    def journal(self):
        found = list(self.place.home.glob("sweeps/small-*/journal.jsonl"))
        return found[0].read_text().splitlines() if found else []

    def runs(self, **tags):
        """MLflow runs with these tags."""
        return [r for r in self.place.tracked() if all(r.data.tags.get(k) == v for k, v in tags.items())]

    def require_order(self, trials, attempts=1):
        """One sweep, one run a trial below it, stages below those with so many runs at most, and nothing that still runs."""
        (sweep,) = self.runs(level="sweep")
        children = self.runs(level="trial")
        assert len(children) == trials
        assert {run.data.tags["mlflow.parentRunId"] for run in children} == {sweep.info.run_id}
        above = {run.info.run_id for run in [*children, *self.runs(level="shared")]}
        stages = [run for run in self.place.tracked() if "pipelines.stage" in run.data.tags]
        assert {run.data.tags["mlflow.parentRunId"] for run in stages} <= above
        assert max(Counter(run.data.tags["pipelines.fingerprint"] for run in stages).values()) == attempts
        assert "RUNNING" not in {run.info.status for run in self.place.tracked()}


@pytest.fixture
def sweeps(place, tmp_path):
    yield Sweeps(place, tmp_path / "spaces")
    for process in psutil.process_iter(["cmdline"]):  # of this test's workspace, and no other
        if any(str(tmp_path) in part for part in process.info["cmdline"] or []):
            process.kill()


def trials_of(driver):
    """The processes of the trials that it runs."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if "pipelines.sweeps.trial" in process.cmdline():
                found.append(process)
        except psutil.Error:
            pass  # it has just ended
    return found


def outcome(results):
    return {
        trial["key"]: (trial["state"], trial["reports"], [o["values"] for o in trial["objectives"].values()])
        for trial in results["trials"]
    }


def test_eight_trials_over_two_upstream_settings_train_two_upstream_models(sweeps):
    results = sweeps.run(CHAIN, 8, "--workers", "2")  # at once, so that two trials want the same model
    assert results["counts"] == {"finished": 8, "stopped": 0, "failed": 0, "waiting": 0}
    done = Counter(path.parent.name.rsplit("-", 1)[0] for path in sweeps.place.home.glob("*/DONE.json"))
    expected = {"prepare": 1, "base_model": 2, "taca_cache": 8}
    assert done == expected
    tracked = Counter(
        run.data.tags["pipelines.stage"] for run in sweeps.place.tracked() if "pipelines.stage" in run.data.tags
    )
    assert tracked == expected
    sweeps.require_order(8)

    best = results["trials"][results["best"]]
    promoted = sweeps.place.root
    written = subprocess.run(
        [sys.executable, "-m", "pipelines", "--workspace", str(promoted), "promote", results["run"], "--whole"],
        cwd=ROOT,
        env=sweeps.place._environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert written.returncode == 0, written.stderr
    for stage in ("prepare", "base_model", "taca_cache"):  # in the order of `dvc repro`
        assert "found finished" in sweeps.place.run(stage).stdout
    metrics = json.loads((promoted / "metrics/taca_cache/all.json").read_text())
    (run,) = [r for r in sweeps.place.tracked("taca_cache") if r.info.run_id == best["stages"][-1]["run"]]
    (found,) = best["objectives"].values()
    assert run.data.metrics["captions"] == metrics["captions"] == found["mean"] == 16


def test_a_sweep_whose_driver_is_killed_three_times_ends_like_an_undisturbed_one(sweeps, place_at, tmp_path):
    calm = Sweeps(place_at(tmp_path / "calm"), tmp_path / "calm-spaces")
    space = {**PROBE, "scheduler": ASHA}
    expected = calm.run(space, 5)
    assert {trial["state"] for trial in expected["trials"]} == {"finished", "stopped"}
    lines = len(calm.journal())

    moments = sorted(random.Random(6).sample(range(1, lines - 1), 3))
    for moment in moments:
        process = sweeps.start(space, 5)
        sweeps.kill_at(process, moment)
    results = sweeps.run(space, 5)
    assert outcome(results) == outcome(expected), f"killed after lines {moments} of {lines}"
    assert results["trials"][results["best"]]["key"] == expected["trials"][expected["best"]]["key"]
    sweeps.require_order(5)


def test_trials_that_fail_are_recorded_and_one_that_is_killed_is_started_again(sweeps, waiting):
    parameters = {RATE: {"choice": [0.001, 0.002]}, "probe.training.accumulate": {"choice": [1, 2]}}
    process = sweeps.start({**PROBE, "parameters": parameters, "searcher": "grid"}, 4)

    def third():
        return trials_of(process) if sum('"suggested"' in line for line in sweeps.journal()) == 3 else []

    (victim,) = waiting(third, process, timeout=400)
    victim.kill()
    assert process.wait(300) == 0, sweeps.said()
    results = json.loads((sweeps.place.root / "results/sweeps/small.json").read_text())
    assert [trial["state"] for trial in results["trials"]] == ["finished", "failed", "finished", "failed"]
    assert "accumulate" in results["trials"][1]["error"]
    assert "trial 2: broke off (its process was ended (exit code -9)); it resumes" in sweeps.said()
    sweeps.require_order(4)
    statuses = {run.data.tags["pipelines.trial"]: run.info.status for run in sweeps.runs(level="trial")}
    assert statuses == {"0": "FINISHED", "1": "FAILED", "2": "FINISHED", "3": "FAILED"}


def test_early_stops_of_trials_with_training_workers_leave_room_for_the_next(sweeps):
    """Two workers of one core take the whole of a two-core cluster: what a stopped trial held must come back."""
    base = {**SMALL, "compute": {"threads": 1, "device": "cpu", "workers": max(2, os.cpu_count() or 2)}}
    parameters = {RATE: {"choice": [0.01, 0.0001, 0.0002]}}
    scheduler = {**ASHA, "grace": 2}
    results = sweeps.run(
        {**PROBE, "base": base, "parameters": parameters, "searcher": "grid", "scheduler": scheduler}, 3
    )
    assert [trial["state"] for trial in results["trials"]] == ["finished", "stopped", "stopped"]
    sweeps.require_order(3)


def test_the_mean_over_seeds_is_the_objective_and_upstream_is_shared(sweeps):
    results = sweeps.run({**PROBE, "parameters": {RATE: {"choice": [0.004]}}}, 1, "--seeds", "3")
    (trial,) = results["trials"]
    (found,) = trial["objectives"].values()
    assert len(set(found["values"])) == 3
    assert found["low"] < found["mean"] < found["high"]
    assert len(sweeps.place.scratch("prepare")) == 1
    assert len(sweeps.place.scratch("probe")) == 3


def test_a_populations_winner_is_a_training_that_anybody_can_repeat_and_kills_change_nothing(
    sweeps, place_at, tmp_path
):
    training = {"steps": 32, "batch": 8, "report_every": 2, "checkpoint_every": 4, "weight_decay": 0.05}
    base = {**SMALL, "probe": {"training": training}}
    parameters = {**PROBE["parameters"], "probe.training.weight_decay": {"uniform": [0.01, 0.2]}}
    scheduler = {"kind": "pbt", **LOSS, "full": "probe.training.steps", "every": 16, "share": 0.34}
    space = {**PROBE, "base": base, "parameters": parameters, "searcher": "random", "scheduler": scheduler}
    process = sweeps.start(space, 3)
    for moment in (8, 20):
        sweeps.kill_at(process, moment)
        process = sweeps.start(space, 3)
    assert process.wait(600) == 0, sweeps.said()
    results = json.loads((sweeps.place.root / "results/sweeps/small.json").read_text())
    assert results["counts"] == {"finished": 3, "stopped": 3, "failed": 0, "waiting": 0}
    changed = next(trial for trial in results["trials"][3:] if trial["values"]["probe.training.changes"])
    sweeps.require_order(6, attempts=2)  # the rounds, which leave their stage unfinished, and the whole

    calm = Sweeps(place_at(tmp_path / "calm"), tmp_path / "calm-spaces")
    assert outcome(calm.run(space, 3, "--workers", "2")) == outcome(results)

    # From nothing, in another scratch root, with the values alone: the same weights and the same curve.
    elsewhere = place_at(tmp_path / "again")
    elsewhere.edit(base)
    for path, value in changed["values"].items():
        elsewhere.edit({"probe": {"training": {path.rsplit(".", 1)[1]: value}}})
    for stage in ("prepare", "probe"):
        assert elsewhere.run(stage).returncode == 0
    (scratch,) = elsewhere.scratch("probe")
    (stage,) = [known for known in changed["stages"] if known["stage"] == "probe"]
    assert stage["fingerprint"].startswith(scratch.name.removeprefix("probe-"))
    found = sweeps.place.home / scratch.name / "outputs"
    assert tree_digests(found / "models/probe") == tree_digests(scratch / "outputs/models/probe")
    assert (found / "curves/probe/all.csv").read_text() == (scratch / "outputs/curves/probe/all.csv").read_text()
