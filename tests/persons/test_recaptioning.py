"""The same pictures with other captions."""

import pickle

import pytest

from components.errors import DataError, ParameterError
from components.persons.drawn.attributes import sample_identities
from components.persons.drawn.captions import compose, short_caption
from components.persons.drawn.lexicon import SYNONYMS
from components.persons.drawn.recaptioning import recaptioned
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset
from components.training.randomness import numpy_generator

TRAIN, TEST = 60, 6


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    shown = [{**person, "view": "front"} for person in sample_identities(TRAIN + TEST, numpy_generator(0, "people"))]
    with DatasetWriter(folder) as writer:
        for number, person in enumerate(shown):
            rng = numpy_generator(1, number)
            captions = [CaptionRow(short_caption(person, rng), "short")]
            captions += [CaptionRow(compose(person, int(rng.integers(2**62))).text, wrong_words=(0,)) for _ in range(2)]
            split = "train" if number < TRAIN else "test"
            writer.add(b"", captions, identity=number, split=split, source="", attributes=person)
    return PersonDataset(folder)


def captions(dataset, split, form):
    rows = dataset.rows(split=split, form=form)
    return list(zip(rows.column("caption_id"), rows.column("caption"), rows.column("wrong_words"), strict=True))


def test_only_long_captions_of_the_split_change_and_the_same_seed_gives_the_same_ones(people):
    noisy = recaptioned(people, 0.3, 5)
    assert captions(noisy, "test", "long") == captions(people, "test", "long")
    assert captions(noisy, "train", "short") == captions(people, "train", "short")
    old, new = captions(people, "train", "long"), captions(noisy, "train", "long")
    assert [row[0] for row in new] == [row[0] for row in old]
    assert sum(a[1] != b[1] for a, b in zip(old, new, strict=True)) > 0.9 * len(old)
    for column in ("image_id", "identity", "attributes", "shard", "row"):
        assert noisy.rows().column(column) == people.rows().column(column)
    assert captions(recaptioned(people, 0.3, 5), "train", "long") == new
    assert captions(recaptioned(people, 0.3, 6), "train", "long") != new
    other = recaptioned(people, 0.3, 5, split="test")
    assert captions(other, "train", "long") == old
    assert captions(other, "test", "long") != captions(people, "test", "long")


def test_without_noise_every_stated_colour_is_the_pictures_and_with_noise_the_marked_ones_are_not(people):
    """Words that name a top's colour, held against the attributes without the grammar that wrote them."""
    words = {word: value for value, names in SYNONYMS["upper_colour"].items() for word in names}
    shown = {row["caption_id"]: row["attributes"] for row in people.rows(split="train", form="long")}

    def about_top(dataset):
        for caption_id, text, wrong in captions(dataset, "train", "long"):
            told = [word.strip(".,").lower() for word in text.split()]
            for place, word in enumerate(told[:-1]):
                if word in words and told[place + 1] in {
                    name for names in SYNONYMS["upper_kind"].values() for name in names
                }:
                    yield f'"upper_colour": "{words[word]}"' in shown[caption_id], place in wrong

    true, noisy = list(about_top(recaptioned(people, 0.0, 0))), list(about_top(recaptioned(people, 0.4, 0)))
    assert len(true) > 20
    assert set(true) == {(True, False)}
    assert set(noisy) == {(True, False), (False, True)}
    assert 0.2 < sum(wrong for _, wrong in noisy) / len(noisy) < 0.6


def test_a_sentence_keeps_its_plan_so_that_it_differs_in_wrong_words_and_articles_alone(people):
    compared = 0
    for old, new in zip(
        captions(recaptioned(people, 0.0, 2), "train", "long"),
        captions(recaptioned(people, 0.2, 2), "train", "long"),
        strict=True,
    ):
        before, after = old[1].split(), new[1].split()
        if len(before) == len(after):  # nothing was invented, left out, or changed its article
            assert {place for place in range(len(before)) if before[place] != after[place]} <= set(new[2])
            compared += 1
    assert compared > 30


def test_fewer_people_are_the_first_of_the_split_and_the_same_captions(people):
    some = recaptioned(people, 0.2, 3, people=7)
    assert set(some.rows(split="train").column("identity")) == set(range(7))
    assert len(some.rows(split="test")) == len(people.rows(split="test"))
    assert captions(some, "train", "long") == captions(recaptioned(people, 0.2, 3), "train", "long")[:14]
    others = recaptioned(people, 0.2, 3, people=7, skip=7)
    assert set(others.rows(split="train").column("identity")) == set(range(7, 14))
    assert captions(others, "train", "long") == captions(recaptioned(people, 0.2, 3), "train", "long")[14:28]
    with pytest.raises(ParameterError, match="people = 61: the split train has 60"):
        recaptioned(people, 0.2, 3, people=61)
    with pytest.raises(ParameterError, match="people = 54 after 7: the split train has 60"):
        recaptioned(people, 0.2, 3, people=54, skip=7)
    with pytest.raises(ParameterError, match="noise rate is"):
        recaptioned(people, 1.5, 3)


def test_in_another_process_the_captions_are_the_new_ones(people):
    noisy = recaptioned(people, 0.3, 5, people=7)
    there = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(noisy))))
    assert there.rows().table.equals(noisy.rows().table)
    assert not there.rows("train").table.equals(people.rows("train").table)
    assert there.image_bytes(3) == people.image_bytes(3)


def test_people_without_attributes_cannot_be_described_again(tmp_path):
    with DatasetWriter(tmp_path) as writer:
        writer.add(b"", [CaptionRow("A man.")], identity=0, split="train", source="")
    with pytest.raises(DataError, match="only drawn people can be described again"):
        recaptioned(PersonDataset(tmp_path), 0.2, 0)
