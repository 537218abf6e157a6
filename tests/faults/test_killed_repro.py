"""`dvc repro` killed with all it has started, and started again: the undisturbed run's output hashes, in fewer steps."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from checkout import Checkout

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


def kill_at(checkout: Checkout, stage: str, fraction: float) -> int:
    """Starts the stage, kills everything at this fraction of its steps; returns the steps that survived."""
    process = checkout.start("--single-item", "--force", stage)
    try:
        deadline = time.monotonic() + 200
        while checkout.progress(stage) < fraction * STEPS[stage]:
            assert process.poll() is None, checkout.printed()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
    time.sleep(0.5)  # the worker sees its pipe close; it may end a write
    return checkout.progress(stage)


@pytest.fixture(scope="module")
def undisturbed(prepared: Checkout) -> Checkout:
    """All long stages have run, undisturbed."""
    prepared.repro("probe", "gadms_finetune@gadms", timeout=900)
    return prepared


def survives(before: Checkout, stage: str, fraction: float, expected: dict[str, str], folder: Path) -> None:
    """Kill `stage` in a copy of `before` that knows nothing of earlier results of it, and run it again."""
    shutil.copytree(before.root, folder, symlinks=True, ignore=shutil.ignore_patterns(".runs", "mlflow.db*"))
    checkout = Checkout(folder)
    survived = kill_at(checkout, stage, fraction)
    assert 0 < survived < STEPS[stage]
    kept = checkout.checkpoints(stage)
    text = checkout.repro("--single-item", "--force", stage)
    if stage.startswith("taca_generate"):  # each batch of pictures is kept on its own, and not drawn again
        assert kept.items() <= checkout.checkpoints(stage).items()
    else:
        went_on = [int(step) for step in re.findall(r"going on from step (\d+)", text)]
        assert sum(went_on) == survived, text
    assert checkout.hashes(stage) == expected
    assert [run.info.status for run in checkout.runs(stage)] == ["FINISHED"]


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
