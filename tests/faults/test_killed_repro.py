"""`dvc repro` killed with all it has started, and started again: the undisturbed run's output hashes, in fewer steps."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import presets

OFTEN = {"report_every": 2, "checkpoint_every": 2}
LONGER = {
    "probe": {"training": {"steps": 60, **OFTEN}},
    "base_model": {"autoencoder": {"steps": 30, **OFTEN}, "training": {"steps": 30, **OFTEN}},
    "taca_train": {"training": {"steps": 40, **OFTEN}},
    "taca_generate": {"prompts": 16, "corpus": 48, "batch": 4},
    "curate": {"matcher": {"steps": 60, **OFTEN}},
    "gadms_pretrain": {"training": {"steps": 60, **OFTEN}},
    "gadms_finetune": {"training": {"steps": 60, **OFTEN}},
    "compute": {"threads": 1, "device": "cpu"},
}
STEPS = {
    "probe": 60,
    "base_model": 60,
    "taca_train@taca": 40,
    "taca_generate@taca_lora": 2 * 16 + 48,
    "curate": 60,
    "gadms_pretrain@gadms": 60,
    "gadms_finetune@gadms": 60,
}
"""Steps of each long stage, summed over its phases (pictures, for generation)."""


class Checkout:
    """A copy of this checkout, with a scratch root and tracking of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / ".runs"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIPELINES_", "MLFLOW_", "DVC_", "RAY_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with open(self.root / ".output", "w") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro", *arguments],
                cwd=self.root,
                env={**kept, "PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
            )

    def repro(self, *arguments: str, timeout: float = 280) -> str:
        """Runs to the end; returns what was printed."""
        process = self.start(*arguments)
        try:
            process.wait(timeout)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        text = (self.root / ".output").read_text()
        assert process.returncode == 0, text[-3000:]
        return text

    def progress(self, stage: str) -> int:
        """Steps in checkpoints, summed over phases."""
        newest: dict[Path, int] = {}
        for path in self.home.glob(f"{stage.replace('@', '-')}-*/checkpoints/*/step-*"):
            newest[path.parent] = max(newest.get(path.parent, 0), int(path.name.removeprefix("step-")))
        return sum(newest.values())

    def hashes(self, stage: str) -> dict[str, str]:
        lock = yaml.safe_load((self.root / "dvc.lock").read_text())
        return {out["path"]: out["md5"] for out in lock["stages"][stage]["outs"]}

    def kill_at(self, stage: str, fraction: float) -> int:
        """Starts the stage, kills everything at this fraction of its steps; returns the steps that survived."""
        process = self.start("--single-item", "--force", stage)
        try:
            deadline = time.monotonic() + 200
            while self.progress(stage) < fraction * STEPS[stage]:
                assert process.poll() is None, (self.root / ".output").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
        time.sleep(0.5)  # the worker sees its pipe close; it may end a write
        return self.progress(stage)


@pytest.fixture(scope="module")
def prepared(copy_of_the_checkout: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Smoke sizes, with training long enough to be killed in the middle; nothing but `prepare` has run."""
    checkout = Checkout(copy_of_the_checkout(tmp_path_factory.mktemp("faults") / "checkout"))
    presets.apply("smoke", checkout.root)
    presets.edit(checkout.root / "params.yaml", LONGER)
    checkout.repro("prepare")
    return checkout


@pytest.fixture(scope="module")
def undisturbed(prepared: Checkout) -> Checkout:
    """All long stages have run, undisturbed."""
    prepared.repro("probe", "gadms_finetune@gadms", timeout=900)
    return prepared


def survives(before: Checkout, stage: str, fraction: float, expected: dict[str, str], folder: Path) -> None:
    """Kill `stage` in a copy of `before` that knows nothing of earlier results of it, and run it again."""
    shutil.copytree(before.root, folder, symlinks=True, ignore=shutil.ignore_patterns(".runs", "mlflow.db*"))
    checkout = Checkout(folder)
    survived = checkout.kill_at(stage, fraction)
    assert 0 < survived < STEPS[stage]
    text = checkout.repro("--single-item", "--force", stage)
    went_on = [int(step) for step in re.findall(r"going on from step (\d+)", text)]
    assert sum(went_on) == survived, text
    assert checkout.hashes(stage) == expected
    assert status_of(checkout, stage) == ["FINISHED"]


def status_of(checkout: Checkout, stage: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{checkout.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("crossmodal-pipelines")
    assert experiment is not None
    name = stage.split("@")[0]
    found = client.search_runs([experiment.experiment_id], f"tags.`pipelines.stage` = '{name}'")
    return [run.info.status for run in found]


@pytest.mark.slow
def test_a_repro_killed_in_mid_training_goes_on_and_gives_the_undisturbed_outputs(prepared, tmp_path):
    checkout = Checkout(tmp_path / "calm")
    shutil.copytree(prepared.root, checkout.root, symlinks=True, ignore=shutil.ignore_patterns(".runs", "mlflow.db*"))
    checkout.repro("--single-item", "probe")
    survives(prepared, "probe", 0.5, checkout.hashes("probe"), tmp_path / "killed")


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("stage", STEPS)
def test_every_long_stage_survives_a_kill_at_any_time(undisturbed, stage, fraction, tmp_path):
    survives(undisturbed, stage, fraction, undisturbed.hashes(stage), tmp_path / "killed")
