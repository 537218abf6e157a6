"""Whether a classifier tells two sets of pictures apart, where it is known how well that can be done."""

import pytest
import torch
from torch.nn import functional

from components.errors import DataError
from components.evaluation.detection import detection_accuracy

SIZE = (16, 8)


def pictures(count: int, seed: int, grain: float = 0.15) -> torch.Tensor:
    coarse = torch.rand(count, 3, 4, 2, generator=torch.Generator().manual_seed(seed))
    fine = functional.interpolate(coarse, SIZE, mode="bilinear")
    noise = grain * torch.randn(fine.shape, generator=torch.Generator().manual_seed(seed + 100))
    return (255 * (fine + noise).clamp(0, 1)).byte()


def test_what_has_one_distribution_is_told_apart_by_chance_alone():
    found = detection_accuracy(pictures(200, 0), pictures(200, 1))
    assert 35 <= found <= 65  # 200 held-out pictures: four standard deviations are 14


def test_pictures_without_grain_are_told():
    assert detection_accuracy(pictures(200, 0), pictures(200, 1, grain=0.0)) > 95


def test_what_a_vae_loses_is_told_though_colours_and_mean_sharpness_agree():
    """Flat drawn areas with sharp edges, and the same with a little speckle: a picture looks alike, and its areas are not flat."""
    flat = (pictures(200, 0, grain=0.0).float() / 64).round() * 64
    speckled = (pictures(200, 1, grain=0.0).float() / 64).round() * 64
    speckled = speckled + torch.randint(-3, 4, speckled.shape, generator=torch.Generator().manual_seed(2))
    assert detection_accuracy(flat.clamp(0, 255).byte(), speckled.clamp(0, 255).byte()) > 95


def test_it_is_the_same_number_again():
    real, generated = pictures(16, 0), pictures(16, 1)
    assert detection_accuracy(real, generated) == detection_accuracy(real, generated)


def test_unequal_numbers_are_refused():
    with pytest.raises(DataError, match="sets of 8 and 6 pictures"):
        detection_accuracy(pictures(8, 0), pictures(6, 0))
