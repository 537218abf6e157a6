"""Noise that does not average out, and captions joined. The words are held against the attributes, without the grammar."""

import pytest

from components.errors import ParameterError
from components.persons.drawn.attributes import sample_identities
from components.persons.drawn.captions import compose, short_caption
from components.persons.drawn.confusion import Confusion
from components.persons.drawn.recaptioning import recaptioned
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset
from components.training.randomness import numpy_generator

PEOPLE, PICTURES = 40, 2
NAVY = Confusion(share=0.5, colours={"blue": "black"})
CLOTHES = ("hat_colour", "upper_colour", "lower_colour", "shoe_colour", "bag_colour")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("confused")
    with DatasetWriter(folder) as writer:
        for number, person in enumerate(sample_identities(PEOPLE, numpy_generator(0, "people"))):
            for _ in range(PICTURES):
                shown, rng = {**person, "view": "front"}, numpy_generator(1, number)
                captions = [CaptionRow(short_caption(shown, rng), "short")]
                captions += [CaptionRow(compose(shown, int(rng.integers(2**62))).text) for _ in range(2)]
                writer.add(b"", captions, identity=number, split="train", source="", attributes=shown)
    return PersonDataset(folder)


def long_rows(dataset):
    return list(dataset.rows(split="train", form="long"))


def words(text):
    return [word.strip(".,").lower() for word in text.split()]


def test_a_confused_person_is_confused_in_all_captions_and_others_in_none(people):
    told = {}
    for true, row in zip(
        long_rows(recaptioned(people, 0.0, 3)), long_rows(recaptioned(people, 0.0, 3, confusion=NAVY)), strict=True
    ):
        blue = [place for place, word in enumerate(words(true["caption"])) if word == "blue"]
        if not blue:
            assert row == true
            continue
        confused = row["caption"] != true["caption"]
        told.setdefault(row["identity"], set()).add(confused)
        assert list(row["wrong_words"]) == (blue if confused else [])
        if confused:
            assert [words(row["caption"])[place] for place in blue] == ["black"] * len(blue)
            assert "blue" not in words(row["caption"])
    assert len(told) > 10
    assert all(len(each) == 1 for each in told.values())
    share = sum(each == {True} for each in told.values()) / len(told)
    assert 0.25 < share < 0.75


def test_who_is_confused_depends_on_the_seed_and_on_nobody_else(people):
    def confused(dataset, seed):
        rows = long_rows(recaptioned(dataset, 0.0, seed, confusion=NAVY))
        return {row["identity"] for row in rows if row["wrong_words"]}

    some = recaptioned(people, 0.0, 0, people=20, skip=10)
    assert confused(some, 4) == {person for person in confused(people, 4) if 10 <= person < 30}
    assert confused(people, 4) != confused(people, 5)
    everybody = recaptioned(people, 0.0, 4, confusion=Confusion(share=1.0, colours={"blue": "black"}))
    assert not any("blue" in words(row["caption"]) for row in long_rows(everybody))


def test_an_invented_bag_is_told_of_those_alone_who_carry_nothing(people):
    invented = recaptioned(people, 0.0, 2, confusion=Confusion(share=1.0, invented_bag=True))
    found = 0
    for row in long_rows(invented):
        wrong = {words(row["caption"])[place] for place in row["wrong_words"]}
        carries_nothing = '"bag": "none"' in row["attributes"]
        assert wrong <= ({"black", "backpack", "rucksack"} if carries_nothing else set())
        found += bool(wrong)
    assert found > 10


def test_a_word_that_noise_and_confusion_together_set_right_is_not_wrong(people):
    confusion = Confusion(
        share=1.0, colours={"gray": "blue"}
    )  # with noise, some blue is told as gray, and that as blue
    for row in long_rows(recaptioned(people, 0.9, 1, confusion=confusion)):
        for name in CLOTHES:
            if f'"{name}": "blue"' in row["attributes"] and name == "upper_colour":
                told = words(row["caption"])
                tops = [p for p, word in enumerate(told[1:], 1) if told[p - 1] == "blue" and word in ("coat", "jacket")]
                assert not [place for place in tops if place - 1 in row["wrong_words"]]


def test_joined_captions_are_two_of_a_picture_with_the_wrong_words_of_both(people):
    alone = long_rows(recaptioned(people, 0.4, 7))
    joined = long_rows(recaptioned(people, 0.4, 7, joined=True))
    assert len(joined) == len(alone)
    for place, row in enumerate(joined):
        first, other = alone[place], alone[place + 1 if place % 2 == 0 else place - 1]
        assert first["image_id"] == other["image_id"] == row["image_id"]
        assert row["caption"] == f"{first['caption']} {other['caption']}"
        marked = [row["caption"].split()[word] for word in row["wrong_words"]]
        expected = [each["caption"].split()[word] for each in (first, other) for word in each["wrong_words"]]
        assert marked == expected


def test_a_colour_that_does_not_exist_is_refused():
    with pytest.raises(ParameterError, match="colours: navy is not one of black"):
        Confusion(colours={"navy": "black"})
