"""Whether a classifier tells two sets of pictures apart, where it is known how well that can be done."""

from functools import partial

import pytest
import torch
from torch.nn import functional

from components.errors import DataError
from components.evaluation.detection import cnn_accuracy, grain_accuracy

SIZE = (16, 8)


def pictures(count: int, seed: int, grain: float = 0.15) -> torch.Tensor:
    coarse = torch.rand(count, 3, 4, 2, generator=torch.Generator().manual_seed(seed))
    fine = functional.interpolate(coarse, SIZE, mode="bilinear")
    noise = grain * torch.randn(fine.shape, generator=torch.Generator().manual_seed(seed + 100))
    return (255 * (fine + noise).clamp(0, 1)).byte()


@pytest.mark.parametrize("accuracy", [grain_accuracy, partial(cnn_accuracy, steps=60)])
def test_what_has_one_distribution_is_told_apart_by_chance_alone(accuracy):
    found = accuracy(pictures(200, 0), pictures(200, 1))
    assert 35 <= found <= 65  # 200 held-out pictures: four standard deviations are 14


@pytest.mark.parametrize("accuracy", [grain_accuracy, partial(cnn_accuracy, steps=60)])
def test_pictures_without_grain_are_told(accuracy):
    assert accuracy(pictures(200, 0), pictures(200, 1, grain=0.0)) > 95


def test_a_cnn_tells_what_pictures_show_where_their_grain_does_not():
    """The sets differ in where red lies: mirrored top to bottom, which no difference of neighbours knows of."""
    gradient = torch.linspace(0, 120, SIZE[0])[:, None] * torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    down = (pictures(400, 0).float() / 2 + gradient).byte()
    up = (pictures(400, 1).float() / 2 + gradient.flip(1)).byte()
    assert cnn_accuracy(down, up, steps=120) > 90


def test_what_a_vae_loses_is_told_though_colours_and_mean_sharpness_agree():
    """Flat drawn areas with sharp edges, and the same with a little speckle: a picture looks alike, and its areas are not flat."""
    flat = (pictures(200, 0, grain=0.0).float() / 64).round() * 64
    speckled = (pictures(200, 1, grain=0.0).float() / 64).round() * 64
    speckled = speckled + torch.randint(-3, 4, speckled.shape, generator=torch.Generator().manual_seed(2))
    assert grain_accuracy(flat.clamp(0, 255).byte(), speckled.clamp(0, 255).byte()) > 95


@pytest.mark.parametrize("accuracy", [grain_accuracy, partial(cnn_accuracy, steps=4)])
def test_it_is_the_same_number_again_and_leaves_the_global_generator_alone(accuracy):
    real, generated = pictures(16, 0), pictures(16, 1)
    state = torch.get_rng_state()
    assert accuracy(real, generated) == accuracy(real, generated)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("accuracy", [grain_accuracy, cnn_accuracy])
def test_unequal_numbers_are_refused(accuracy):
    with pytest.raises(DataError, match="sets of 8 and 6 pictures"):
        accuracy(pictures(8, 0), pictures(6, 0))
