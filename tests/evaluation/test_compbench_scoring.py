import json
from pathlib import Path

import numpy as np
import pytest

from components.errors import DataError
from components.evaluation.compbench.blip_vqa import BlipVqa
from components.evaluation.compbench.phrases import Reading
from components.evaluation.compbench.pictures import PromptPicture
from components.evaluation.compbench.published import UNIDET_FILE, read_unidet, write_result
from components.evaluation.compbench.results import difference, mean_score, per_prompt
from components.evaluation.compbench.scoring import Instruments, score_category, three_in_one
from components.evaluation.intervals import bootstrap_mean


def drawn(*prompts: str) -> list[PromptPicture]:
    return [PromptPicture(prompt, number, Path(f"{prompt}_{number:06}.png")) for number, prompt in enumerate(prompts)]


def unidet_result(folder: Path, rows: list[dict[str, object]]) -> Path:
    file = folder / UNIDET_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))
    return file


def published_three_in_one(data, spatial, action, attribute_score, spatial_score, action_score, num):
    """3_in_1.py's loop over prompts, ten pictures in a row, in our words."""
    total = np.zeros(num * len(data))
    for place, prompt in enumerate(data):
        own = slice(place * num, (place + 1) * num)
        if prompt in spatial:
            total[own] = (spatial_score[own] + attribute_score[own]) * 0.5
        elif prompt in action:
            total[own] = (action_score[own] + attribute_score[own]) * 0.5
        else:
            total[own] = (attribute_score[own] + spatial_score[own] + action_score[own]) / 3
    return total


def test_three_in_one_is_what_the_published_loop_gives():
    random, prompts = np.random.default_rng(0), [f"prompt {number}" for number in range(12)]
    spatial, action = prompts[:4], prompts[3:9]  # a prompt in both lists counts as spatial
    parts = {name: random.random(120) for name in ("attribute", "spatial", "action")}
    relation = [
        "spatial" if prompt in spatial else "action" if prompt in action else "both"
        for prompt in prompts
        for _ in range(10)
    ]
    wanted = published_three_in_one(prompts, spatial, action, parts["attribute"], parts["spatial"], parts["action"], 10)
    np.testing.assert_array_equal(three_in_one(relation, **parts), wanted)


def test_a_part_that_is_missing_leaves_no_number_where_it_is_needed():
    nothing, half = np.full(3, np.nan), np.full(3, 0.5)
    found = three_in_one(["spatial", "action", "both"], half, nothing, half)
    np.testing.assert_array_equal(found, [np.nan, 0.5, np.nan])


def test_unidets_scores_are_found_by_the_pictures_numbers(tmp_path):
    rows = [{"question_id": 2, "answer": 0}, {"question_id": 0, "answer": 0.75}, {"question_id": 1, "answer": "0.6"}]
    np.testing.assert_array_equal(read_unidet(unidet_result(tmp_path, rows), drawn("a", "a", "b")), [0.75, 0.6, 0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": 0, "answer": 0.5}], "no score for 1 of 2 pictures, such as 'b_000001.png'"),
        ([{"question_id": 0, "answer": 0.5}, {"question_id": 0, "answer": 0.6}], "there twice"),
        ([{"question_id": 0, "answer": 0.5}, {"question_id": 1, "answer": 50}], "outside"),
        ([{"id": 0}], "not a UniDet result"),
        ({"0": 0.5}, "not a UniDet result"),
    ],
)
def test_a_unidet_result_that_does_not_fit_is_refused(tmp_path, rows, message):
    with pytest.raises(DataError, match=message) as error:
        read_unidet(unidet_result(tmp_path, rows), drawn("a", "b"))
    assert "\n" not in str(error.value)


def test_pictures_that_share_a_number_cannot_be_scored_by_unidet(tmp_path):
    file = unidet_result(tmp_path, [{"question_id": 0, "answer": 0.5}])
    with pytest.raises(DataError, match="2 pictures have number 0"):
        read_unidet(file, [PromptPicture("a", 0, Path("a_000000.png")), PromptPicture("b", 0, Path("b_000000.png"))])


def test_result_files_have_the_published_places_and_contents(tmp_path):
    for metric in ("BLIP-VQA", "CLIPScore", "3-in-1"):
        write_result(tmp_path, metric, np.array([0.5, 0.25]))
    read = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.*")}
    assert read == {
        "annotation_blip/vqa_result.json": '[{"question_id": 0, "answer": "0.5000"}, {"question_id": 1, "answer": "0.2500"}]',
        "annotation_blip/blip_vqa_score.txt": "BLIP-VQA score:0.375",
        "annotation_clip/vqa_result.json": '[{"question_id": 0, "answer": 0.5}, {"question_id": 1, "answer": 0.25}]',
        "annotation_clip/score_avg.txt": "score avg:0.375",
        "annotation_3_in_1/vqa_result.json": '[{"question_id": 0, "answer": 0.5}, {"question_id": 1, "answer": 0.25}]',
        "annotation_3_in_1/vqa_score.txt": "score avg:0.375",
    }


def test_means_are_over_pictures_and_intervals_over_prompts():
    pictures = drawn("a", "a", "a", "b", "c")
    scores = np.array([0.1, 0.2, 0.3, 1.0, np.nan])
    assert per_prompt(scores, pictures) == {"a": pytest.approx(0.2), "b": 1.0}
    interval = mean_score(scores, pictures)
    assert interval.mean == pytest.approx(1.6 / 4)
    assert interval == bootstrap_mean(scores, units=["a", "a", "a", "b", "c"])
    assert interval != bootstrap_mean(scores)


def test_two_folders_are_compared_over_the_prompts_that_both_have():
    first, second = {"a": 0.5, "b": 0.75, "c": 1.0}, {"b": 0.25, "a": 0.5, "d": 0.0}
    interval = difference(first, second)
    assert interval is not None
    assert interval.mean == pytest.approx((0 + 0.5) / 2)
    assert (interval.low, interval.high) == (0, 0.5)
    assert difference(first, {"d": 1.0}) is None


class Yes(BlipVqa):
    """Answers every question with 0.5, without a model."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def probabilities(self, pictures, asked):
        self.asked += [list(own) for own in asked]
        return [np.full(len(own), 0.5, np.float32) for own in asked]


@pytest.fixture
def on_disk(tmp_path) -> list[PromptPicture]:
    from PIL import Image

    found = []
    for picture in drawn("spatial", "action", "both"):
        Image.new("RGB", (4, 4)).save(tmp_path / picture.path)
        found.append(PromptPicture(picture.prompt, picture.number, tmp_path / picture.path))
    return found


READINGS = {"spatial": Reading(("a",)), "action": Reading(("a", "b")), "both": Reading(("a", "b", "c"))}
RELATIONS = {"spatial": "spatial", "action": "action", "both": "both"}


def test_a_metric_without_its_means_is_left_out_with_its_reason(on_disk, tmp_path):
    found = score_category("spatial", on_disk, Instruments(Yes(), None, READINGS), unidet=tmp_path / UNIDET_FILE)
    assert found.scores == {}  # BLIP could answer, but it is not this category's metric
    assert str(UNIDET_FILE) in found.skipped["UniDet"]
    found = score_category("non_spatial", on_disk, Instruments(Yes(), None, READINGS), unidet=tmp_path)
    assert (found.scores, found.skipped) == ({}, {"CLIPScore": "no CLIP weights are given"})
    found = score_category("texture", on_disk, Instruments(), unidet=tmp_path)
    assert (found.scores, found.skipped) == ({}, {"BLIP-VQA": "no BLIP folder is given"})


def test_the_attributes_of_a_prompt_are_asked_and_multiplied(on_disk, tmp_path):
    blip = Yes()
    found = score_category("color", on_disk, Instruments(blip, None, READINGS), unidet=tmp_path)
    np.testing.assert_array_equal(found.scores["BLIP-VQA"], [0.5, 0.25, 0.125])
    assert blip.asked == [["a?"], ["a?", "b?"], ["a?", "b?", "c?"]]
    assert found.skipped == {}


def test_complex_prompts_without_unidet_or_clip_get_no_three_in_one(on_disk, tmp_path):
    unidet = tmp_path / UNIDET_FILE
    found = score_category("complex", on_disk, Instruments(Yes(), None, READINGS), unidet=unidet, relations=RELATIONS)
    assert list(found.scores) == ["BLIP-VQA"]
    assert found.skipped["3-in-1"] == "it needs UniDet and CLIPScore"
    unidet_result(tmp_path, [{"question_id": number, "answer": 1.0} for number in range(3)])
    found = score_category("complex", on_disk, Instruments(Yes(), None, READINGS), unidet=unidet, relations=RELATIONS)
    assert list(found.scores) == ["BLIP-VQA", "UniDet"]
    assert found.skipped["3-in-1"] == "it needs CLIPScore"
