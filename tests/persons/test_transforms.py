import pytest
import torch

from components.errors import ParameterError
from components.persons import transforms
from components.persons.augmentation import AugmentationConfig
from components.persons.transforms import CLIP_MEAN, CLIP_STD, augment, normalise
from components.training.randomness import generator

OFF = AugmentationConfig(flip=0, pad=0, erase=0)


def pictures(count=16, height=64, width=32):
    return torch.randint(0, 256, (count, 3, height, width), generator=generator(0, "pictures")).to(torch.uint8)


def test_normalisation_matches_the_clip_formula_for_every_byte():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    for channel in range(3):
        expected = (torch.arange(256, dtype=torch.float64) / 255 - CLIP_MEAN[channel]) / CLIP_STD[channel]
        torch.testing.assert_close(normalise(pixels)[0, channel].flatten().double(), expected, atol=1e-6, rtol=0)


def test_with_everything_off_only_normalisation_is_left():
    torch.testing.assert_close(augment(pictures(), OFF, generator(0)), normalise(pictures()), atol=0, rtol=0)


def test_certain_flip_mirrors_every_picture_and_the_default_mirrors_none():
    mirrored = augment(pictures(), AugmentationConfig(flip=1, pad=0, erase=0), generator(0))
    torch.testing.assert_close(mirrored, normalise(pictures().flip(-1)), atol=0, rtol=0)
    assert AugmentationConfig().flip == 0


def test_a_crop_is_a_shift_by_at_most_the_padding_with_black_beyond_the_edge():
    pixels, pad = pictures(), 3
    cropped = augment(pixels, AugmentationConfig(pad=pad, erase=0), generator(1))
    padded = torch.nn.functional.pad(pixels, (pad,) * 4)
    offsets = set()
    for index in range(len(pixels)):
        found = [
            (dy, dx)
            for dy in range(2 * pad + 1)
            for dx in range(2 * pad + 1)
            if torch.equal(cropped[index], normalise(padded[index : index + 1, :, dy : dy + 64, dx : dx + 32])[0])
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) > 8


def test_erasing_blanks_one_box_of_the_asked_area_with_the_clip_mean(monkeypatch):
    monkeypatch.setattr(transforms, "ERASE_AREA", (0.1, 0.3))
    config = AugmentationConfig(pad=0, erase=1)
    pixels = pictures(200)
    result, clean = augment(pixels, config, generator(2)), normalise(pixels)
    value = torch.tensor(CLIP_MEAN).view(3, 1, 1)
    fractions = []
    for before, after in zip(clean, result, strict=True):
        erased = (after == value).all(dim=0)
        assert torch.equal(after[:, ~erased], before[:, ~erased])
        ys, xs = torch.nonzero(erased, as_tuple=True)
        height, width = int(ys.max() - ys.min()) + 1, int(xs.max() - xs.min()) + 1
        assert erased.sum() == height * width
        fractions.append(height * width / (64 * 32))
        rounding = (height + width + 1) / 2 / (64 * 32)  # of both sides to whole pixels
        assert 0.1 - rounding <= fractions[-1] <= 0.3 + rounding
    assert min(fractions) < 0.11
    assert max(fractions) > 0.29


def test_half_of_the_pictures_are_erased_at_probability_one_half():
    result = augment(pictures(400, 32, 16), AugmentationConfig(pad=0, erase=0.5), generator(3))
    touched = (result != normalise(pictures(400, 32, 16))).flatten(1).any(dim=1)
    assert 150 < int(touched.sum()) < 250


def test_the_same_generator_gives_the_same_batch_and_the_input_is_untouched():
    pixels = pictures()
    before = pixels.clone()
    config = AugmentationConfig(flip=0.5, pad=4)
    first, second = augment(pixels, config, generator(4)), augment(pixels, config, generator(4))
    assert torch.equal(first, second)
    assert not torch.equal(first, augment(pixels, config, generator(5)))
    assert torch.equal(pixels, before)
    assert first.dtype == torch.float32


def test_a_batch_is_augmented_as_its_slices_of_the_same_draws_are():
    """Row k uses the k-th draws alone: other pictures in the batch do not matter."""
    config = AugmentationConfig(flip=0.5, pad=4)
    pixels = pictures()
    other = pixels.clone()
    other[1:] = 255 - other[1:]
    assert torch.equal(augment(pixels, config, generator(6))[0], augment(other, config, generator(6))[0])


@pytest.mark.parametrize("bad", [{"flip": 1.2}, {"pad": -1}, {"erase": -0.1}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        AugmentationConfig(**bad)


def test_pixels_of_the_wrong_kind_are_refused():
    with pytest.raises(ParameterError, match="uint8"):
        augment(torch.zeros(1, 3, 8, 8), OFF, generator(0))
