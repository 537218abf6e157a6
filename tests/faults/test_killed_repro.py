"""`dvc repro` killed with all it has started, and started again: the undisturbed run's output hashes, in fewer steps."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from checkout import Checkout
from processes import wait_until

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
        wait_until(
            lambda: checkout.progress(stage) >= fraction * STEPS[stage], process, said=checkout.printed, pause=0.02
        )
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
    time.sleep(0.5)  # the worker sees its pipe close; it may end a write
    return checkout.progress(stage)


@pytest.fixture(scope="module")
def undisturbed(prepared: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """All long stages have run, undisturbed."""
    checkout = prepared.copy(tmp_path_factory.mktemp("undisturbed") / "checkout")
    checkout.repro("gadms_finetune@gadms", timeout=900)
    return checkout


def survives(before: Checkout, stage: str, fractions: list[float], expected: dict[str, str], folder: Path) -> None:
    """Kill `stage`, and kill it again whenever it has gone on, in a copy of `before` that knows no result of it."""
    checkout = before.copy(folder)
    survived, kept = 0, {}

    def require_no_repetition() -> None:
        if stage.startswith("taca_generate"):  # each batch of pictures is kept on its own, and not drawn again
            assert kept.items() <= checkout.checkpoints(stage).items()
        else:
            went_on = [int(step) for step in re.findall(r"resuming from step (\d+)", checkout.printed())]
            assert sum(went_on) == survived, checkout.printed()

    for fraction in fractions:
        now = kill_at(checkout, stage, fraction)
        require_no_repetition()
        assert survived < now < STEPS[stage]
        survived, kept = now, checkout.checkpoints(stage)
    checkout.repro("--single-item", "--force", stage)
    require_no_repetition()
    assert checkout.hashes(stage) == expected
    assert [run.info.status for run in checkout.runs(stage)] == ["FINISHED"]


@pytest.mark.heavy  # a slice of `make chaos` kills every kind of process in each run of CI
def test_a_repro_killed_in_mid_training_goes_on_and_gives_the_undisturbed_outputs(prepared, tmp_path):
    checkout = prepared.copy(tmp_path / "calm")
    checkout.repro("--single-item", "probe")
    survives(prepared, "probe", [0.5], checkout.hashes("probe"), tmp_path / "killed")


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", [stage for stage in STEPS if stage != "probe"])  # which the test above is about
def test_every_long_stage_survives_kills_at_any_time(undisturbed, stage, tmp_path):
    survives(undisturbed, stage, [0.2, 0.5, 0.8], undisturbed.hashes(stage), tmp_path / "killed")
