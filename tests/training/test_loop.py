"""The training loop against an undisturbed run, a formula, or a second way of computing the same."""

import errno
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from two_processes import in_two_processes

from components.errors import ParameterError
from components.training.accumulation import require_even, virtual_ranks
from components.training.averaging import WeightAverage
from components.training.config import LoopConfig, RateChange
from components.training.context import LocalContext
from components.training.loop import NonFiniteLossError, StopRequested, _Meter, fit
from components.training.randomness import generator, rank_part, stream_seed
from components.training.schedules import learning_rate_factor
from components.training.task import PerSampleTask, TrainingTask


class Regression(TrainingTask):
    """A small network with batch normalisation (running buffers) and dropout, or without; its loss may turn NaN at a step."""

    def __init__(self, bad_step: int | None = None, normalised: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            norm = nn.BatchNorm1d(6) if normalised else nn.LayerNorm(6)
            dropout = nn.Dropout(0.3 if normalised else 0.0)
            self.network = nn.Sequential(nn.Linear(4, 6), norm, nn.Tanh(), dropout, nn.Linear(6, 1))
        self.bad_step = bad_step

    def forward(self, batch, step):
        inputs, targets = batch
        loss = (self.network(inputs).squeeze(1) - targets).square().mean()
        return {"loss": loss * math.nan if step == self.bad_step else loss, "step": torch.tensor(float(step))}


def global_batch(step, size=8):
    rng = generator(0, "batch", step)
    inputs = torch.randn(size, 4, generator=rng)
    return inputs, inputs.sin().sum(1)


class Killed(Exception):
    pass


class DyingContext(LocalContext):
    """Dies at the `call`-th call of `method`, before or after it has taken effect. What it reported outlives it."""

    def __init__(self, folder, method, call, before):
        super().__init__(folder=folder)
        self.plan, self.call, self.before, self.calls = method, call, before, 0

    def _perform(self, name, act):
        self.calls += name == self.plan
        dies = name == self.plan and self.calls == self.call
        if dies and self.before:
            raise Killed
        act()
        if dies:
            raise Killed

    def save(self, state, step):
        self._perform("save", lambda: LocalContext.save(self, state, step))

    def report(self, metrics, step):
        self._perform("report", lambda: LocalContext.report(self, metrics, step))


CONFIG = LoopConfig(
    steps=23, learning_rate=0.01, weight_decay=0.1, warmup_steps=3, ema_decay=0.9, report_every=4, checkpoint_every=5
)


REPORTED = LoopConfig(steps=12, learning_rate=0.01, report_every=4)


def train(context, config=CONFIG, task=None):
    task = task or Regression()
    fit(task, global_batch, config, context)
    return {name: value.clone() for name, value in task.state_dict().items()}


@pytest.mark.parametrize("method", ["save", "report"])
@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("before", [True, False])
def test_a_killed_run_ends_with_the_weights_and_metrics_of_an_undisturbed_one(tmp_path, method, call, before):
    calm = LocalContext(folder=tmp_path / "calm")
    expected = train(calm)
    dying = DyingContext(tmp_path / "killed", method, call, before)
    with pytest.raises(Killed):
        train(dying)
    second = LocalContext(folder=tmp_path / "killed")
    found = train(second)

    assert all(torch.equal(found[name], expected[name]) for name in expected)
    first_step = second.history[0][0]
    assert calm.history[-len(second.history) :] == second.history  # bit for bit, also means over a checkpoint's edge
    assert [entry for entry in dying.history if entry[0] < first_step] == calm.history[: -len(second.history)]


def test_the_average_and_the_optimiser_are_those_of_the_undisturbed_run(tmp_path):
    states = []
    for name, kills in (("calm", False), ("killed", True)):
        if kills:
            with pytest.raises(Killed):
                train(DyingContext(tmp_path / name, "save", 3, True))
        context = LocalContext(folder=tmp_path / name)
        train(context)
        states.append(context.load()[1])
    calm, killed = states
    torch.testing.assert_close(killed, calm, rtol=0, atol=0)
    assert any(not torch.equal(s, w) for s, w in zip(calm["average"]["shadow"], calm["weights"].values(), strict=True))


def test_training_neither_uses_nor_moves_the_global_random_state():
    torch.manual_seed(1)
    first, after_first = train(LocalContext()), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after_first)
    second = train(LocalContext())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_finished_run_trains_no_further_and_gives_the_same_weights(tmp_path):
    expected = train(LocalContext(folder=tmp_path))
    again = LocalContext(folder=tmp_path)
    found = train(again)
    assert again.history == []
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_loss_that_is_not_finite_stops_before_the_optimiser_step(tmp_path):
    config = LoopConfig(steps=10, learning_rate=0.01, checkpoint_every=100)
    task = Regression(bad_step=6, normalised=False)
    with pytest.raises(NonFiniteLossError, match="step 7"):
        fit(task, global_batch, config, LocalContext(folder=tmp_path), decay="constant")
    before = Regression(normalised=False)
    fit(before, global_batch, LoopConfig(steps=6, learning_rate=0.01), LocalContext(), decay="constant")
    for (name, found), expected in zip(task.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(found, expected), name


class Steep(PerSampleTask):
    """Its loss is finite in every step, and its gradient is NaN in the fourth, that of sqrt at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))

    def forward(self, batch, step):
        if step < 3:
            return {"loss": (self.weight - batch).square().mean()}
        return {"loss": (self.weight - self.weight.detach()).square().sum().sqrt()}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_finite_loss_whose_gradient_is_not_reaches_neither_weights_nor_a_checkpoint(
    tmp_path, accumulate, clip_norm, optimizer
):
    config = LoopConfig(
        steps=8, learning_rate=0.01, checkpoint_every=1, accumulate=accumulate, clip_norm=clip_norm, optimizer=optimizer
    )
    parts = [lambda step: torch.zeros(())] * accumulate
    expected = Steep()
    fit(expected, parts, replace(config, steps=3), LocalContext(), decay="constant")
    task, context = Steep(), LocalContext(folder=tmp_path)
    with pytest.raises(NonFiniteLossError, match="the gradient is not finite at step 4"):
        fit(task, parts, config, context, decay="constant")
    assert torch.equal(task.weight, expected.weight)
    step, state = context.load()
    assert step == 3
    assert torch.equal(state["weights"]["weight"], expected.weight)
    assert not task.training  # whoever catches the error may evaluate


def test_a_norm_that_overflows_stops_too():
    """No element of the gradient is infinite, but Adam's square of it would be, and the weight would never move again."""
    task = Steep()
    task.forward = lambda batch, step: {"loss": task.weight.sum() * 1e25}
    with pytest.raises(NonFiniteLossError, match="the gradient is not finite at step 1"):
        fit(task, lambda step: None, LoopConfig(steps=1, learning_rate=0.1), LocalContext())
    assert torch.equal(task.weight, torch.ones(2, 2))


def test_a_checkpoint_is_made_in_one_pass_over_the_tensors_and_holds_shared_ones_once(tmp_path, monkeypatch):
    class Shared(TrainingTask):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(8)])
            self.layers[5].weight = self.layers[0].weight
            self.register_buffer("table", torch.zeros(3))

        def forward(self, batch, step):
            return {"loss": sum(layer.weight.sum() + layer.bias.sum() for layer in self.layers)}

    passes = []
    named = Shared.named_parameters
    monkeypatch.setattr(
        Shared, "named_parameters", lambda self, **options: (passes.append(1), named(self, **options))[1]
    )
    task, context = Shared(), LocalContext(folder=tmp_path)
    fit(task, lambda step: None, LoopConfig(steps=1, learning_rate=0.1), context)
    assert len(passes) < 10
    state = context.load()[1]
    assert set(state["buffers"]) == {"table"}
    again = Shared()
    fit(again, lambda step: None, LoopConfig(steps=1, learning_rate=0.1), context)
    assert all(torch.equal(value, task.state_dict()[name]) for name, value in again.state_dict().items())
    assert again.layers[5].weight is again.layers[0].weight


def test_weight_decay_shrinks_matrices_and_nothing_else():
    class Still(TrainingTask):
        """Its gradients are zero, so that weight decay alone moves it."""

        def __init__(self):
            super().__init__()
            self.matrix, self.bias, self.scale = (nn.Parameter(torch.ones(s)) for s in ((2, 2), (2,), ()))

        def forward(self, batch, step):
            return {"loss": sum(p.sum() * 0 for p in self.parameters())}

    task = Still()
    config = LoopConfig(steps=3, learning_rate=0.1, weight_decay=0.5)
    fit(task, lambda step: None, config, LocalContext(), decay="constant")
    torch.testing.assert_close(task.matrix, torch.full((2, 2), (1 - 0.1 * 0.5) ** 3))  # decoupled: w <- w (1 - lr wd)
    assert torch.equal(task.bias, torch.ones(2))
    assert torch.equal(task.scale, torch.ones(()))


def test_frozen_parameters_stay_and_are_not_in_the_checkpoint(tmp_path):
    task = Regression()
    task.network[0].weight.requires_grad_(False)
    before = task.network[0].weight.clone()
    context = LocalContext(folder=tmp_path)
    train(context, task=task)
    assert torch.equal(task.network[0].weight, before)
    assert "network.0.weight" not in context.load()[1]["weights"]


def test_reported_values_are_means_since_the_last_report():
    context = LocalContext()
    fit(Regression(), global_batch, LoopConfig(steps=10, learning_rate=0.01, report_every=4), context)
    assert [(step, metrics["train/step"]) for step, metrics in context.history] == [(4, 1.5), (8, 5.5), (10, 8.5)]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_average_follows_its_recurrence(steps):
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    average = WeightAverage([weight], 0.9)
    expected = torch.zeros(3, dtype=torch.float64)
    for step in range(steps):
        weight.data += step + 1
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.data
    torch.testing.assert_close(average.shadow[0], expected)


def test_the_schedule_warms_up_linearly_and_then_follows_half_a_cosine():
    found = [learning_rate_factor(step, 104, 4, "cosine") for step in range(105)]
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4:] == pytest.approx([math.cos(math.pi * s / 200) ** 2 for s in range(101)], abs=1e-12)
    assert [learning_rate_factor(step, 10, 2, "constant") for step in (1, 2, 9)] == pytest.approx([2 / 3, 1, 1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"report_every": 0},
        {"checkpoint_every": 0},
        {"accumulate": 0},
        {"learning_rate": 0.0},
        {"ema_decay": 1.0},
    ],
)
def test_a_loop_that_cannot_run_is_refused_by_name(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        LoopConfig(**{"steps": 1, "learning_rate": 0.1, **wrong})


class OneOfTwo(LocalContext):
    """One of two ranks, of which the first writes checkpoints; requests a stop after `stop` steps."""

    def __init__(self, rank, folder, stop=None):
        super().__init__(folder=folder)
        self.rank, self.world_size, self.left = rank, 2, stop

    def save(self, state, step):
        if self.rank == 0:
            super().save(state, step)

    def stop_requested(self):
        self.left = self.left and self.left - 1
        return self.left == 0


def train_twice(rank, world_size, folder):
    """On one of two ranks: weights and history of a training, also one that stops and is resumed between two reports, and how one
    ends whose loss or gradient is bad on rank 1."""
    stopped = OneOfTwo(rank, Path(folder, "two"), stop=6)
    with pytest.raises(StopRequested):
        train_part(rank, world_size, context=stopped)
    if rank == 0:
        shutil.copytree(Path(folder, "two"), Path(folder, "one"))  # where one process goes on
    dist.barrier()
    state, history = train_part(rank, world_size, context=OneOfTwo(rank, Path(folder, "two")))
    own = Path(folder, f"of-{rank}")
    shutil.copytree(Path(folder, "one"), own)
    if rank == 1:  # whose copy of the newest checkpoint is torn
        (*_, newest) = sorted(own.glob("step-*/state.pt"))
        newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(OSError, match="different checkpoints") as apart:
        train_part(rank, world_size, context=OneOfTwo(rank, own))
    return {
        "apart": apart.value.args,
        "good": train_part(rank, world_size),
        "resumed": (state, stopped.history + history),
        "bad": train_part(rank, world_size, bad_rank=1),
        "bad gradient": train_part(rank, world_size, bad_rank=1, bad_gradient=True),
    }


def train_part(rank, world_size, bad_rank=None, bad_gradient=False, context=None):
    context = context or OneOfTwo(rank, None)
    task = Regression(bad_step=3 if rank == bad_rank and not bad_gradient else None, normalised=False)
    if rank == bad_rank and bad_gradient:
        task.network[0].weight.register_hook(lambda gradient: gradient * math.inf)

    def batches(step):
        inputs, targets = global_batch(step)
        return inputs[4 * rank : 4 * rank + 4], targets[4 * rank : 4 * rank + 4]

    try:
        fit(task, batches, REPORTED, context)
    except NonFiniteLossError as error:
        assert all(parameter.isfinite().all() for parameter in task.parameters())
        return f"stopped: {error}"
    return task.state_dict(), context.history


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def by_rank(warm_address, folder):
    return in_two_processes(train_twice, warm_address, str(folder))


@pytest.mark.slow
def test_ranks_that_read_different_checkpoints_take_no_step(by_rank):
    (first, second) = (found["apart"] for found in by_rank)
    assert first == second
    assert first[0] == errno.ESTALE
    assert re.search(r"rank 0 that of step 6, rank 1 that of step \d", first[1])


def test_the_meter_takes_scalars_from_another_device():
    context = LocalContext(device="meta")
    meter = _Meter(context)
    meter.add(
        {"loss": torch.zeros((), device="meta"), "gradient_norm": torch.zeros(())}
    )  # a sharded norm is gathered on the CPU
    assert {value.device.type for value in meter.sums.values()} == {"meta"}
    assert torch.stack(list(meter.sums.values())).dtype == torch.float64


@pytest.mark.slow
def test_two_processes_compute_what_one_computes_on_the_global_batch(by_rank):
    (first, first_history), (second, _) = (found["good"] for found in by_rank)
    context, task = LocalContext(), Regression(normalised=False)
    fit(task, global_batch, REPORTED, context)
    for name, expected in task.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=1e-6)
    for (step, found), (_, expected) in zip(first_history, context.history, strict=True):
        assert found["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-5), step


@pytest.mark.slow
def test_what_two_processes_report_is_the_same_when_they_are_stopped_between_two_reports(by_rank, folder):
    for found in by_rank:
        (weights, history), (expected, undisturbed) = found["resumed"], found["good"]
        assert history == undisturbed  # bit for bit
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    context = LocalContext(folder=folder / "one")
    fit(Regression(normalised=False), global_batch, REPORTED, context)
    for (step, found), (_, expected) in zip(context.history, undisturbed[1:], strict=True):
        assert found == pytest.approx(expected, rel=1e-5), step


@pytest.mark.slow
def test_a_bad_loss_on_one_rank_stops_both(by_rank):
    for found in by_rank:
        assert "the loss is not finite at step 4" in found["bad"]
        assert "the gradient is not finite at step 1" in found["bad gradient"]


def test_streams_do_not_depend_on_the_process_or_on_each_other():
    assert stream_seed(0, "noise", 3) == 6757770607321690014  # SHA-256 of "0\x1fnoise\x1f3"
    seeds = {stream_seed(seed, *names) for seed in (0, 1) for names in [("a",), ("b",), ("a", 0), ("a", "b"), ("ab",)]}
    assert len(seeds) == 10
    draws = torch.stack([torch.randn(4000, generator=generator(0, "noise", step)) for step in range(4)])
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 0.08  # 5 sigma of 1 / sqrt(4000)


class Independent(Regression, PerSampleTask):
    """Says that its samples are independent of each other, and keeps which part of the batch it was asked for."""

    def __init__(self) -> None:
        super().__init__(normalised=False)
        self.asked: list[tuple[int, int]] = []

    def forward(self, batch, step):
        self.asked.append((self.rank, self.world_size))
        return super().forward(batch, step)


def parts_of(count, size=8):
    def part(index):
        return lambda step: tuple(values.chunk(count)[index] for values in global_batch(step, size))

    return [part(index) for index in range(count)]


def test_a_batch_in_parts_takes_the_steps_of_the_whole_batch():
    config = LoopConfig(steps=12, learning_rate=0.01, report_every=4, ema_decay=0.9)
    contexts, tasks = [LocalContext(), LocalContext()], [Independent(), Independent()]
    fit(tasks[0], global_batch, config, contexts[0])
    fit(tasks[1], parts_of(4), replace(config, accumulate=4), contexts[1])
    for (name, expected), found in zip(tasks[0].named_parameters(), tasks[1].parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)
    for (step, expected), (_, found) in zip(contexts[0].history, contexts[1].history, strict=True):
        assert found == pytest.approx(expected, rel=1e-5), step
    assert tasks[0].asked == [(0, 1)] * 12
    assert tasks[1].asked == [(0, 4), (1, 4), (2, 4), (3, 4)] * 12
    assert (tasks[1].rank, tasks[1].world_size) == (0, 1)


def test_virtual_ranks_are_those_of_one_worker_after_the_other():
    context = LocalContext()
    context.rank, context.world_size = 1, 3
    assert torch.equal(rank_part(torch.arange(12), 1, 3), torch.arange(4, 8))
    with pytest.raises(
        ParameterError, match="batch = 16: must be a multiple of the 3 workers"
    ):  # and no row is dropped
        rank_part(torch.arange(16), 1, 3)
    assert virtual_ranks(context, 2) == [{"rank": 2, "world_size": 6}, {"rank": 3, "world_size": 6}]
    require_even(12, context, 2)
    with pytest.raises(ParameterError, match="batch = 16: must be a multiple of 3 workers x accumulate 2"):
        require_even(16, context, 2)


@pytest.mark.parametrize(
    ("task", "batches", "accumulate", "message"),
    [
        (Regression(), global_batch, 2, "Regression needs its whole batch at once; set accumulate to 1"),
        (Independent(), global_batch, 2, r"gets batches in 1 part\(s\) per step"),
        (Independent(), parts_of(4), 2, r"gets batches in 4 part\(s\) per step"),
    ],
)
def test_what_cannot_be_computed_in_parts_is_refused_before_the_first_step(task, batches, accumulate, message):
    config = LoopConfig(steps=1, learning_rate=0.1, accumulate=accumulate)
    with pytest.raises(ParameterError, match=message):
        fit(task, batches, config, LocalContext())


@pytest.mark.parametrize("place", range(3))
def test_a_part_that_is_not_finite_stops_before_the_optimiser_step(place):
    task = Independent()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    parts = parts_of(4)
    good = parts[place]
    parts[place] = lambda step: (good(step)[0] * math.nan, good(step)[1])
    with pytest.raises(NonFiniteLossError, match="step 1"):
        fit(task, parts, LoopConfig(steps=1, learning_rate=0.1, accumulate=4), LocalContext())
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_a_strategy_that_does_not_exist_is_refused():
    context = LocalContext()
    context.strategy = "zero"
    with pytest.raises(ParameterError, match="strategy = 'zero': allowed are ddp, fsdp"):
        fit(Regression(), global_batch, LoopConfig(steps=1, learning_rate=0.1), context)


CHANGES = (
    RateChange(5, learning_rate=0.002),
    RateChange(12, weight_decay=0.3),
    RateChange(17, learning_rate=0.03, weight_decay=0.1),
)
CHANGED = replace(CONFIG, ema_decay=0.0, changes=CHANGES)


def test_changed_rates_are_those_of_a_plain_loop_that_sets_them_step_by_step():
    task = Regression()
    fit(task, global_batch, CHANGED, LocalContext())

    plain = Regression()
    matrices = [p for p in plain.parameters() if p.ndim >= 2]
    vectors = [p for p in plain.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors}], betas=(0.9, CHANGED.beta2), eps=CHANGED.epsilon
    )
    rates = [0.01] * 5 + [0.002] * 12 + [0.03] * 6
    decays = [0.1] * 12 + [0.3] * 5 + [0.1] * 6
    for step, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
        warm, falling = (step + 1) / 4, 0.5 * (1 + math.cos(math.pi * (step - 3) / 20))
        for group, own in zip(optimizer.param_groups, (decay, 0.0), strict=True):
            group["lr"], group["weight_decay"] = rate * (warm if step < 3 else falling), own
        optimizer.zero_grad()
        with torch.random.fork_rng():
            torch.manual_seed(stream_seed(0, "train", "global", step, 0))
            plain(global_batch(step), step)["loss"].backward()
        nn.utils.clip_grad_norm_(plain.parameters(), CHANGED.clip_norm)
        optimizer.step()
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(task.state_dict()[name], expected, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_gone_on_from_with_a_later_change_is_a_training_with_that_change_from_the_start(tmp_path):
    begun = replace(CHANGED, changes=CHANGES[:1])
    with pytest.raises(Killed):
        train(DyingContext(tmp_path, "save", 2, False), begun)  # the checkpoint after step 10 is its last
    context = LocalContext(folder=tmp_path)
    assert context.load()[0] == 10
    found = train(context, CHANGED)
    expected = train(LocalContext(), CHANGED)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(found[name], value) for name, value in train(LocalContext(), begun).items())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ([{"step": 0, "learning_rate": 0.1}], r"changes\.0\.step = 0: input should be greater than or equal to 1"),
        ([RateChange(23, learning_rate=0.1)], r"changes\[0\].step = 23"),
        ([RateChange(4), RateChange(4)], r"changes\[1\].step = 4: must be above 4"),
        ([{"step": 4, "learning_rate": 0.0}], r"changes\.0\.learning_rate = 0\.0: input should be greater than 0"),
        ([{"step": 4, "weight_decay": -1.0}], r"changes\.0\.weight_decay = -1\.0"),
    ],
)
def test_changes_that_cannot_be_are_refused(changes, error):
    with pytest.raises(ParameterError, match=error):
        replace(CONFIG, changes=changes)
    with pytest.raises(ParameterError, match="changes only what begins above 0"):
        replace(CONFIG, weight_decay=0.0, changes=[RateChange(4, weight_decay=0.1)])
