"""Muon against a plain restatement of its paper, and the optimiser of two against its parts and an undisturbed run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from components.errors import ParameterError
from components.training.config import LoopConfig
from components.training.context import LocalContext
from components.training.loop import fit
from components.training.muon import MOMENTUM, MuonAdamW, matrices_of
from components.training.numbered import OncePerSample, part_of
from components.training.randomness import generator
from components.training.task import TrainingTask


class Words(TrainingTask):
    """An embedding, two matrices, gains and biases, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.words = nn.Embedding(9, 6)
            self.positional_embedding = nn.Parameter(torch.randn(4, 6))
            self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 3, bias=False)
            self.convolution = nn.Conv1d(3, 2, 2)

    def forward(self, batch, step):
        hidden = torch.tanh(self.first(self.words(batch) + self.positional_embedding))
        return {"loss": (self.convolution(self.second(hidden).mT) - 0.3).square().mean()}


def batch(step: int) -> torch.Tensor:
    return torch.randint(9, (8, 4), generator=generator(0, "words", step))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The quintic iteration of Jordan et al. (2024) as their text states it: five times X <- a X + b (X X^T) X + c (X X^T)^2 X."""
    x = matrix.to(torch.bfloat16)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).float()


CONFIG = LoopConfig(
    steps=7, learning_rate=0.02, weight_decay=0.1, clip_norm=0, optimizer="muon", report_every=3, checkpoint_every=3
)


def test_matrices_are_moved_as_the_paper_says_and_all_else_as_by_adamw():
    task, plain = Words(), Words()
    values = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}
    optimizer = MuonAdamW([{"params": list(task.parameters())}], matrices_of(task), **values)
    moved = {name: p for name, p in plain.named_parameters() if name in ("first.weight", "second.weight")}
    momentum = {name: torch.zeros_like(p) for name, p in moved.items()}
    adamw = torch.optim.AdamW([p for name, p in plain.named_parameters() if name not in moved], **values, foreach=True)
    for step in range(6):
        for (name, ours), theirs in zip(task.named_parameters(), plain.parameters(), strict=True):
            ours.grad = torch.randn(ours.shape, generator=generator(0, name, step))
            theirs.grad = ours.grad.clone()
        optimizer.step()
        adamw.step()
        with torch.no_grad():
            for name, weight in moved.items():
                momentum[name] = MOMENTUM * momentum[name] + (1 - MOMENTUM) * weight.grad
                nesterov = MOMENTUM * momentum[name] + (1 - MOMENTUM) * weight.grad
                size = 0.2 * max(weight.shape) ** 0.5  # the root mean square of AdamW's steps, Liu et al. (2025)
                weight.mul_(1 - 0.02 * 0.1).sub_(0.02 * size * orthogonal(nesterov))
    for (name, ours), theirs in zip(task.named_parameters(), plain.named_parameters(), strict=True):
        if name in moved:  # the iteration is computed in bfloat16, in another order of operations
            torch.testing.assert_close(ours, theirs[1], rtol=0, atol=2e-3)
        else:
            assert torch.equal(ours, theirs[1]), name


def test_embeddings_gains_and_convolutions_are_no_matrices():
    task = Words()
    assert matrices_of(task) == {task.first.weight, task.second.weight}


class Killed(Exception):
    pass


class DyingContext(LocalContext):
    def save(self, state, step):
        super().save(state, step)
        raise Killed


def test_a_killed_training_by_muon_ends_with_the_same_bits(tmp_path: Path):
    undisturbed, killed = Words(), Words()
    fit(undisturbed, batch, CONFIG, LocalContext(folder=tmp_path / "whole"))
    for _ in range(2):
        with pytest.raises(Killed):
            fit(Words(), batch, CONFIG, DyingContext(folder=tmp_path / "killed"))
    fit(killed, batch, CONFIG, LocalContext(folder=tmp_path / "killed"))
    for ours, theirs in zip(killed.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_rates_of_a_loaded_state_are_those_of_the_parts():
    task = Words()
    groups = [{"params": list(task.parameters())}]
    first, second = (
        MuonAdamW(groups, matrices_of(task), lr=lr, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8) for lr in (0.1, 0.2)
    )
    second.load_state_dict(first.state_dict())
    before = [p.detach().clone() for p in task.parameters()]
    for group in second.param_groups:
        group["lr"] = 0.0
    task(batch(0), 0)["loss"].backward()
    second.step()
    assert all(torch.equal(p, old) for p, old in zip(task.parameters(), before, strict=True))
    assert len(second.state) == len(before)


@pytest.mark.parametrize("values", [{}, {"grow_at": 1, "grow_by": 3}, {"grow_at": 4, "grow_by": 2}])
def test_every_sample_of_a_training_has_a_number_of_its_own_and_none_is_left_out(values):
    training = OncePerSample(steps=7, learning_rate=0.1, batch=6, **values)
    seen = [number for step in range(7) for number in training.numbers(step)]
    assert seen == list(range(training.samples))
    sizes = [len(training.numbers(step)) for step in range(7)]
    grown = values.get("grow_at", 7)
    assert sizes == [6] * grown + [6 * values.get("grow_by", 1)] * (7 - grown)
    for step in range(7):
        parts = [number for rank in range(3) for number in part_of(training.numbers(step), rank, 3)]
        assert parts == list(training.numbers(step))


def test_a_batch_cannot_grow_after_the_end_nor_be_accumulated():
    with pytest.raises(ParameterError, match="grow_at = 7: must be below steps = 7"):
        OncePerSample(steps=7, learning_rate=0.1, batch=6, grow_at=7)
    with pytest.raises(ParameterError, match="accumulate = 2"):
        OncePerSample(steps=7, learning_rate=0.1, batch=6, accumulate=2)
