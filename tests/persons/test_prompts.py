"""The prompts of a set's pictures, and which captions a picture that is drawn from one has."""

import numpy as np
import pytest

from components.persons.pixels import encode_png
from components.persons.prompts import dataset_prompts, prompt_form
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset

LONG = ["A woman in a red coat.", "She carries a black bag."]


def people(folder, *captions):
    with DatasetWriter(folder) as writer:
        for number in range(2):
            picture = encode_png(np.full((4, 2, 3), number, dtype=np.uint8))
            writer.add(picture, captions, identity=number, split="train", source="made up")
    return PersonDataset(folder)


def test_a_picture_drawn_from_one_caption_does_not_show_what_the_others_tell(tmp_path):
    dataset = people(tmp_path, *map(CaptionRow, LONG))
    assert prompt_form(dataset) == "long"
    for prompt in dataset_prompts(dataset, "train", 5):
        assert prompt.text == LONG[0]
        assert prompt.captions == (CaptionRow(LONG[0], "long"),)


def test_a_short_form_states_all_that_the_long_captions_tell(tmp_path):
    dataset = people(tmp_path, CaptionRow("red coat, black bag", "short"), *map(CaptionRow, LONG))
    (prompt,) = dataset_prompts(dataset, "train", 1)
    assert prompt.text == "red coat, black bag"
    assert [row.caption for row in prompt.captions] == LONG


@pytest.mark.parametrize(("number", "expected"), [(1, 1), (2, 2), (3, 2)])
def test_a_picture_has_one_prompt(tmp_path, number, expected):
    assert len(dataset_prompts(people(tmp_path, *map(CaptionRow, LONG)), "train", number)) == expected
