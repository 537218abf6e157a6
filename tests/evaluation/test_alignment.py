import numpy as np
import pytest
import torch

from components.errors import DataError
from components.evaluation.alignment import AlignmentScores, paired_difference, score_alignment
from components.evaluation.probe.model import AttributeProbe


class Oracle(AttributeProbe):
    """A probe that reads its answers from the first pixels of a picture."""

    def __init__(self) -> None:
        super().__init__({"hat": ("none", "cap"), "coat": ("red", "blue", "green")}, height=8, width=8, channels=8)

    def predict(self, pixels: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
        return pixels[:, 0, 0, :2].long()


def pictures(*answers: tuple[int, int]) -> torch.Tensor:
    canvas = torch.zeros(len(answers), 3, 8, 8, dtype=torch.uint8)
    canvas[:, 0, 0, :2] = torch.tensor(answers, dtype=torch.uint8)
    return canvas


PROMPTS = [{"hat": "cap", "coat": "green"}, {"coat": "red"}, {"hat": "none", "coat": "red"}, {}]


def test_a_picture_is_scored_on_what_its_prompt_asks_for():
    scores = score_alignment(Oracle(), pictures((1, 0), (1, 0), (0, 0), (0, 0)), PROMPTS)
    np.testing.assert_array_equal(scores.correct, [[1, 0], [np.nan, 1], [1, 1], [np.nan, np.nan]])
    np.testing.assert_array_equal(scores.per_picture(), [0.5, 1, 1, np.nan])
    assert scores.per_attribute() == pytest.approx({"hat": 100, "coat": 200 / 3})
    assert scores.mean() == pytest.approx((100 + 200 / 3) / 2)
    assert scores.interval().mean == pytest.approx(100 * 2.5 / 3)


def test_attributes_nobody_asks_for_are_left_out_of_the_mean():
    scores = score_alignment(Oracle(), pictures((0, 0)), [{"coat": "red"}])
    assert scores.per_attribute() == {"coat": 100}
    assert scores.mean() == 100


def test_two_arms_are_compared_picture_by_picture():
    better = score_alignment(Oracle(), pictures((1, 2), (0, 0), (0, 0), (0, 0)), PROMPTS)
    worse = score_alignment(Oracle(), pictures((1, 1), (0, 1), (0, 0), (0, 0)), PROMPTS)
    difference = paired_difference(better, worse)
    assert difference["mean"].mean == pytest.approx(100 * (0.5 + 1 + 0) / 3)
    assert difference["hat"].mean == 0
    assert difference["coat"].mean == pytest.approx(200 / 3)
    assert difference["mean"].low <= difference["mean"].mean <= difference["mean"].high


def test_arms_of_different_prompts_are_not_compared():
    first = score_alignment(Oracle(), pictures((1, 2)), [{"hat": "cap"}])
    with pytest.raises(DataError, match="same prompts"):
        paired_difference(first, score_alignment(Oracle(), pictures((1, 2)), [{"coat": "red"}]))
    with pytest.raises(DataError, match="same prompts"):
        paired_difference(first, AlignmentScores(("hat", "coat"), np.zeros((2, 2))))


def test_pictures_and_prompts_must_be_as_many():
    with pytest.raises(DataError, match="1 pictures"):
        score_alignment(Oracle(), pictures((0, 0)), PROMPTS)
