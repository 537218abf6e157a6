"""The decoder of the small model, trained against a discriminator."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from components.taca.conventions import signed_pixels
from components.taca.toy.config import TinyConfig
from components.taca.toy.decoder import DecoderTask, discriminator
from components.taca.toy.pipeline import build_tiny_pipeline
from components.training.config import LoopConfig
from components.training.context import LocalContext
from components.training.loop import fit

SMALL = TinyConfig(width=32, heads=2, double_blocks=1, single_blocks=1, text_width=16, text_layers=1, text_tokens=6)


@pytest.fixture
def vae() -> Any:
    return build_tiny_pipeline(SMALL, ("red",), seed=0).vae


def batch(number: int = 4) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (number, 3, 16, 8), generator=source, dtype=torch.uint8)
    return {"pixels": pixels, "latents": torch.randn(number, 8, 8, 4, generator=source)}


def task_of(vae: Any, **options: Any) -> DecoderTask:
    return DecoderTask(vae, **({"seed": 0, "weight": 0.7, "begin": 0} | options))


def gradients(task: DecoderTask, part: nn.Module, step: int = 0) -> list[torch.Tensor]:
    task.zero_grad()
    task(batch(), step)["loss"].backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in part.parameters()]


def test_decoder_and_discriminator_are_trained_and_nothing_else(vae: Any) -> None:
    task = task_of(vae)
    before = {name: weight.clone() for name, weight in task.state_dict().items()}
    fit(task, lambda step: batch(), LoopConfig(steps=2, learning_rate=1e-3), LocalContext())
    changed = {name for name, weight in task.state_dict().items() if not torch.equal(weight, before[name])}
    trained = {name for name in before if name.startswith(("vae.decoder.", "discriminator."))}
    assert changed <= trained
    assert {name.split(".")[0] for name in changed} == {"vae", "discriminator"}


def test_a_discriminator_learns_from_its_own_loss_alone(vae: Any) -> None:
    """Its gradient is the one that it has where the decoder does not try to convince it."""
    task, alone = task_of(vae), task_of(vae, begin=9)
    convinced = gradients(task, task.discriminator)
    assert any(gradient.any() for gradient in convinced)
    for found, expected in zip(convinced, gradients(alone, alone.discriminator), strict=True):
        torch.testing.assert_close(found, expected)


def test_until_it_begins_the_decoder_learns_from_reconstruction_alone(vae: Any) -> None:
    task = task_of(vae, begin=5)
    early = gradients(task, vae.decoder, step=4)
    vae.decoder.zero_grad()
    pixels = signed_pixels(batch()["pixels"])
    decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    (functional.l1_loss(decoded, pixels) + functional.mse_loss(decoded, pixels)).backward()
    for found, parameter in zip(early, vae.decoder.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-6)
    later = gradients(task, vae.decoder, step=5)
    assert any(not torch.allclose(a, b) for a, b in zip(early, later, strict=True))


def test_the_adversarial_loss_has_its_weight_times_the_gradient_of_the_reconstruction(vae: Any) -> None:
    """At the last layer, where both are measured."""
    last = vae.decoder.conv_out.weight
    gradients(task_of(vae, weight=0.0), vae.decoder)
    reconstruction = last.grad.clone()
    gradients(task_of(vae, weight=0.01), vae.decoder)
    added = (last.grad - reconstruction).norm()
    assert added.item() == pytest.approx(0.01 * reconstruction.norm().item(), rel=0.05)


def test_a_discriminator_tells_noise_from_flat_pictures_after_a_few_steps() -> None:
    torch.manual_seed(0)
    judge = discriminator()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-2)
    source = torch.Generator().manual_seed(0)

    def both() -> torch.Tensor:
        flat = torch.rand(8, 3, 1, 1, generator=source).expand(8, 3, 16, 8)
        return torch.cat([flat, flat + 0.1 * torch.randn(8, 3, 16, 8, generator=source)])

    origin = torch.arange(16) < 8
    for _ in range(200):
        loss = functional.binary_cross_entropy_with_logits(judge(both()), origin.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert judge(both()).shape == (16,)
    told = [((judge(both()) > 0) == origin).float().mean() for _ in range(16)]
    assert sum(told) / len(told) > 0.8


def test_the_same_seed_gives_the_same_discriminator_and_leaves_the_global_generator_alone(vae: Any) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second, other = (task_of(vae, seed=seed).discriminator.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
