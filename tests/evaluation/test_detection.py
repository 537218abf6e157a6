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
    found = detection_accuracy(pictures(200, 0), pictures(200, 1), steps=40)
    assert 35 <= found <= 65  # 200 held-out pictures: four standard deviations are 14


def test_pictures_without_grain_are_told():
    assert detection_accuracy(pictures(200, 0), pictures(200, 1, grain=0.0), steps=80) > 95


def test_it_is_the_same_number_again():
    real, generated = pictures(16, 0), pictures(16, 1)
    assert detection_accuracy(real, generated, steps=3) == detection_accuracy(real, generated, steps=3)


def test_unequal_numbers_are_refused():
    with pytest.raises(DataError, match="8 real and 6 generated pictures"):
        detection_accuracy(pictures(8, 0), pictures(6, 0))
