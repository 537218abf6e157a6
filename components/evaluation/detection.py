"""Can generated pictures be told from real ones? A classifier is trained for that question alone.

Each returns the percent of held-out pictures whose origin it tells: 50 where it tells nothing, 100 at worst. The first half of each
set trains the classifier and the second is judged, so what belongs together, as pictures of one prompt, should lie in one half.
Each raises `DataError` where the numbers of pictures differ or are below 4.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.errors import DataError
from components.training.randomness import stream_seed

EDGES = (0, 1, 2, 4, 6, 9, 13, 20, 30, 50, 80, 120)
"""Differences of two values, of 255, below or at which a feature counts; drawn areas are flat, and generated ones are not quite."""
DECAY, ITERATIONS = 1e-3, 200


def grain_accuracy(real: Tensor, generated: Tensor) -> float:
    """Ask a logistic regression on `grain`; real, generated: uint8 (N, 3, H, W).

    A generator of latents misses grain first. What a picture shows plays no part.
    """
    return linear_accuracy(grain(real), grain(generated))


def cnn_accuracy(real: Tensor, generated: Tensor, steps: int = 600) -> float:
    """Ask a small CNN whose first layer reads every pixel, trained for `steps` steps of 64; real, generated: uint8 (N, 3, H, W)."""
    _require_pairs(real, generated)
    both = torch.stack([real, generated]).float() / 127.5 - 1  # (2, N, 3, H, W)
    half = len(real) // 2
    known, held_out = both[:, :half].flatten(0, 1), both[:, half:].flatten(0, 1)
    origin = (torch.arange(len(known)) >= half).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(0, "cnn that tells pictures"))
        convolutions = (*_convolution(3, 16, 1), *_convolution(16, 32, 2), *_convolution(32, 64, 2))
        cnn = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))
        optimizer = torch.optim.AdamW(cnn.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, total_steps=steps)
        for step in range(steps):
            rows = torch.randint(len(known), (64,))
            batch = known[rows].flip(-1) if step % 2 else known[rows]
            loss = functional.binary_cross_entropy_with_logits(cnn(batch).squeeze(1), origin[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    cnn.eval()
    with torch.no_grad():
        found = torch.cat([cnn(part).squeeze(1) > 0 for part in held_out.split(200)])
    told = found == (torch.arange(len(held_out)) >= len(held_out) // 2)
    return 100 * float(told.double().mean())


def linear_accuracy(first: Tensor, second: Tensor) -> float:
    """Ask a logistic regression on features (N, F) of each set."""
    _require_pairs(first, second)
    half = len(first) // 2
    features = torch.stack([first, second])  # (2, N, F)
    origin = torch.tensor([0.0, 1.0])[:, None].expand(features.shape[:2])
    known = features[:, :half].flatten(0, 1)
    features = (features - known.mean(0)) / known.std(0).clamp_min(1e-6)
    weights = torch.zeros(features.shape[-1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = features[:, :half] @ weights[:-1] + weights[-1]
        total = functional.binary_cross_entropy_with_logits(logits, origin[:, :half])
        total = total + DECAY * weights.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        told = (features[:, half:] @ weights[:-1] + weights[-1] > 0) == (origin[:, half:] > 0)
    return 100 * float(told.double().mean())


def _require_pairs(first: Tensor, second: Tensor) -> None:
    if len(first) != len(second) or len(first) < 4:
        raise DataError(f"sets of {len(first)} and {len(second)} pictures: give as many of each, at least 4")


def _convolution(channels: int, wider: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, wider, 3, stride, padding=1), nn.BatchNorm2d(wider), nn.ReLU()


def grain(pixels: Tensor) -> Tensor:
    """Return (N, F) float32 of uint8 (N, 3, H, W): the shares of first and second differences, down and across, up to `EDGES`."""
    found = []
    for axis in (2, 3):
        first = pixels.float().diff(dim=axis)
        for differences in (first, first.diff(dim=axis)):
            size = differences.abs().flatten(1)
            found += [(size <= edge).float().mean(1) for edge in EDGES]
    return torch.stack(found, dim=1)
