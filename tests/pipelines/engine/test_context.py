"""What a stage's context does when its storage is away, its checkpoints are gone, or a stop is requested."""

import errno
import threading
import time

import pytest
import torch

from components.training.config import LoopConfig
from components.training.loop import StopRequested, fit
from components.training.task import TrainingTask
from pipelines.engine.context import StageContext
from pipelines.errors import InfrastructureError
from pipelines.scratch.folder import Scratch
from pipelines.scratch.metric_log import MetricLog


class Linear(TrainingTask):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4, 1))

    def forward(self, batch, step):
        return {"loss": (batch @ self.weight - 1).square().mean()}


CONFIG = LoopConfig(steps=9, learning_rate=0.1, report_every=2, checkpoint_every=4, ema_decay=0.9)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.engine.context.LOOK_SECONDS", 0.0)
    scratch = Scratch(tmp_path / "probe-0123")
    scratch.begin()
    return scratch


def context_of(scratch, **options):
    return StageContext(scratch, seed=0, arm=None, device=torch.device("cpu"), **options)


def train(context, at_step=lambda step: None):
    task = Linear()

    def batches(step):
        at_step(step)
        return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))

    fit(task, batches, CONFIG, context)
    return task.weight.detach()


def curve(scratch):
    return MetricLog(scratch.metrics_file).table()


@pytest.fixture
def calm(tmp_path):
    scratch = Scratch(tmp_path / "calm")
    scratch.begin()
    return train(context_of(scratch)), curve(scratch)


def test_a_stop_request_saves_a_checkpoint_and_training_resumes_to_the_same_weights(scratch, calm):
    def ask(step):
        if step == 5:
            scratch.stop_file.touch()

    with pytest.raises(StopRequested, match="stopped after step 6"):
        train(context_of(scratch), ask)
    context = context_of(scratch)
    assert context._store.steps() == [4, 6]  # neither 4, which was due, nor 8
    scratch.begin()
    assert not scratch.stop_file.exists()
    started = []
    weight = train(context, started.append)
    assert started == [6, 7, 8]
    assert torch.equal(weight, calm[0])
    assert curve(scratch) == calm[1]


def test_training_stops_one_step_after_the_report_it_should_reach(scratch, calm):
    scratch.stop_after_file.write_text('{"metric": "train/loss", "step": 4}')
    other = context_of(scratch).phase("other")
    other.report({"validation/loss": 1.0}, 8)
    assert not other.stop_requested()
    with pytest.raises(StopRequested, match="stopped after step 5"):
        train(context_of(scratch))
    assert scratch.checkpoint_at("train/loss", 4) == scratch.checkpoints / "main" / "step-00000004"
    assert scratch.checkpoint_at("train/loss", 2) is None
    assert scratch.checkpoint_at("validation/loss", 4) is None
    scratch.begin()
    assert torch.equal(train(context_of(scratch)), calm[0])


def test_a_stop_requested_in_the_last_step_changes_nothing(scratch, calm):
    weight = train(context_of(scratch), lambda step: step == 8 and scratch.stop_file.touch())
    assert torch.equal(weight, calm[0])


def test_storage_that_is_away_for_a_while_is_waited_for(scratch, calm, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIPELINES_STORAGE_PATIENCE", "30")

    def take_away(step):
        if step == 5:  # reports after steps 6 and 8, the checkpoint after step 8
            scratch.folder.rename(tmp_path / "away")
            threading.Timer(1.2, lambda: (tmp_path / "away").rename(scratch.folder)).start()

    started = time.monotonic()
    weight = train(context_of(scratch), take_away)
    assert time.monotonic() - started > 1
    assert torch.equal(weight, calm[0])
    assert curve(scratch) == calm[1]
    assert context_of(scratch)._store.steps() == [8, 9]
    assert "is away; waiting for it, 30 s at most" in capsys.readouterr().out


def test_storage_that_stays_away_ends_the_work_with_one_line(scratch, tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINES_STORAGE_PATIENCE", "0.6")
    context = context_of(scratch)
    scratch.folder.rename(tmp_path / "away")
    with pytest.raises(InfrastructureError, match="has been away for 1 s: bring it back"):
        context.report({"loss": 1.0}, 1)
    assert not scratch.folder.exists()


def test_a_full_disk_is_not_waited_for(scratch, monkeypatch):
    def full(value, file):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos")  # as PyTorch does it  # noqa: B904

    context = context_of(scratch)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        OSError, match="No space left on device: the checkpoint after step 3 cannot be written"
    ) as raised:
        context.save({"a": 1}, 3)
    assert raised.value.errno == errno.ENOSPC


def test_checkpoints_that_were_deleted_cost_a_fresh_start_and_a_line(scratch, calm, capsys):
    with pytest.raises(ZeroDivisionError):
        train(context_of(scratch), lambda step: 1 // (7 - step))
    for checkpoint in (scratch.checkpoints / "main").iterdir():
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    capsys.readouterr()
    weight = train(context_of(scratch))
    assert "main: no checkpoint is left to resume from; starting again" in capsys.readouterr().out
    assert torch.equal(weight, calm[0])
    assert curve(scratch) == calm[1]


def test_a_first_start_says_nothing(scratch, capsys):
    assert context_of(scratch).load() is None
    assert capsys.readouterr().out == ""


def test_going_on_with_another_number_of_workers_is_said(scratch, capsys):
    context_of(scratch, world_size=2).save({"weights": {}}, 4)
    step, state = context_of(scratch).load()
    assert (step, state) == (4, {"weights": {}})
    assert "resuming from step 4 with 1 worker(s) in place of 2" in capsys.readouterr().out


def test_the_worker_of_a_suspended_runner_stops_when_another_has_taken_the_folder_over(scratch):
    lease = scratch.folder / "lease.json"
    with scratch.lock():  # as the runner
        scratch.holder = scratch.lease_token()
        held = lease.read_text()

        def take_over(step):
            if step == 6:
                lease.write_text(held.replace(scratch.holder, "another"))

        with pytest.raises(InfrastructureError, match="has taken over"):
            train(context_of(scratch), take_over)
        assert [path.name for path in (scratch.checkpoints / "main").iterdir()] == ["step-00000004"]
        # What it would have reported at step 8 is not there.
        assert max(line["step"] for line in MetricLog(scratch.metrics_file).read()) == 6
        lease.write_text(held)
