"""People of pre-training: who is reserved, what is drawn afresh, and which words there are."""

from itertools import product

import numpy as np
import pytest

from components.errors import ParameterError
from components.persons.drawn.attributes import ATTRIBUTES, applies, difference, identity_key, sample_identities
from components.persons.drawn.caption_noise import CaptionNoise
from components.persons.drawn.captions import compose, short_caption
from components.persons.drawn.catalogue import (
    HELD_OUT,
    WORN_BY_NOBODY,
    catalogue_caption,
    catalogue_words,
    sample_catalogue_person,
)
from components.persons.drawn.config import PRESETS, DrawnConfig
from components.persons.drawn.dataset import _people
from components.persons.drawn.drawing import draw_person
from components.persons.drawn.fresh import CATALOGUE_PEOPLE, EVALUATED_PEOPLE, FreshPeople, stacked
from components.persons.drawn.lexicon import SYNONYMS
from components.persons.drawn.reserved import RESERVED_SHARE, is_reserved, sample_unreserved
from components.persons.drawn.words import LONG_VOCABULARY, SHORT_VOCABULARY, VOCABULARY, unknown_words, words_of
from components.training.randomness import numpy_generator


def enumerated() -> list[dict[str, str]]:
    """All 48,600 combinations of nine attributes, the others fixed; what does not apply is left out."""
    varied = ("gender", "build", "skin", "hair_length", "hair_colour", "hat", "upper_kind", "lower_kind", "shoe_kind")
    fixed = {name: values[0] for name, values in ATTRIBUTES.items() if name not in (*varied, "view")}
    found = []
    for values in product(*(ATTRIBUTES[name] for name in varied)):
        person = {**fixed, **dict(zip(varied, values, strict=True))}
        found.append({name: person[name] for name in ATTRIBUTES if name in person and applies(name, person)})
    return found


@pytest.fixture(scope="module")
def reserved() -> tuple[list[dict[str, str]], np.ndarray]:
    people = enumerated()
    return people, np.array([is_reserved(person) for person in people])


def test_a_fixed_share_of_all_combinations_is_reserved_and_of_every_value_alike(reserved):
    people, chosen = reserved
    assert len({identity_key(person) for person in people}) == len(people) == 2 * 3 * 3 * 3 * 5 * 4 * 5 * 3 * 3
    deviation = (RESERVED_SHARE * (1 - RESERVED_SHARE)) ** 0.5
    assert abs(chosen.mean() - RESERVED_SHARE) < 4 * deviation / len(people) ** 0.5
    for name in ("gender", "hat", "upper_kind", "shoe_kind", "hair_colour"):
        for value in ATTRIBUTES[name]:
            having = np.array([person[name] == value for person in people])
            assert abs(chosen[having].mean() - RESERVED_SHARE) < 5 * deviation / having.sum() ** 0.5, (name, value)


def test_it_depends_on_the_combination_alone(reserved):
    people, chosen = reserved
    for person, known in list(zip(people, chosen, strict=True))[::997]:
        shuffled = dict(reversed(list(person.items())))
        assert is_reserved({**shuffled, "view": "left"}) == known
    # A constant of the published checkpoints: another number is another reservation.
    assert int(chosen[:1000].sum()) == 116


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_a_split_with_reservation_evaluates_nobody_whom_pretraining_may_draw_under_any_seed(seed):
    config = DrawnConfig(train_identities=60, val_identities=12, test_identities=20, near_duplicates=0.5, reserve=True)
    people = _people(config, seed)
    assert {split: len([1 for s, *_ in people if s == split]) for split in ("train", "val", "test")} == {
        "train": 60,
        "val": 12,
        "test": 20,
    }
    assert all(is_reserved(person) == (split != "train") for split, _, person in people)
    tested = [person for split, _, person in people if split == "test"]
    twins = [a for a in tested if any(len(difference(a, b)) == 1 for b in tested)]
    assert len(twins) >= 10


def test_without_reservation_the_people_are_as_before():
    config = DrawnConfig(train_identities=30, val_identities=5, test_identities=10)
    test = sample_identities(10, numpy_generator(4, "people", "test"), near_duplicates=0.3)
    assert [person for split, _, person in _people(config, 4) if split == "test"] == test


def test_nobody_is_drawn_twice_none_is_reserved_and_a_number_is_a_picture():
    people = FreshPeople(0, "test", {"clean": 1.0}, height=64, width=32)
    drawn = people.people(range(150))
    assert len({person.pixels.tobytes() for person in drawn}) == 150
    assert not any(is_reserved(person.identity) for person in drawn)
    again = FreshPeople(0, "test", {"clean": 1.0}, height=64, width=32).person(77)
    assert (again.pixels == drawn[77].pixels).all()
    assert again.caption == drawn[77].caption
    other = FreshPeople(0, "other", {"clean": 1.0}, height=64, width=32).person(77)
    assert (other.pixels != drawn[77].pixels).any()
    pixels = stacked(drawn[:3])
    assert pixels.shape == (3, 3, 64, 32)
    assert (pixels[1].permute(1, 2, 0).numpy() == drawn[1].pixels).all()


def test_evaluated_people_are_reserved_and_the_weights_of_presets_choose():
    people = FreshPeople(0, "e", {"clean": 0.0, "occluded": 1.0}, height=64, width=32, domain=EVALUATED_PEOPLE)
    assert all(is_reserved(person.identity) for person in people.people(range(20)))
    assert any("lower_kind" not in person.shown for person in people.people(range(40)))  # behind something
    with pytest.raises(ParameterError, match="presets"):
        FreshPeople(0, "e", {"clean": 0.0}, height=64, width=32)


def test_the_catalogue_is_another_domain_of_the_same_people():
    person = sample_unreserved(numpy_generator(0, "one"))
    street, catalogue = (
        draw_person(person, numpy_generator(0, "pose"), view="front", degradation=PRESETS["clean"], **look)
        for look in ({}, {"look": CATALOGUE_PEOPLE.look})
    )
    assert np.abs(street.pixels.astype(int) - catalogue.pixels).mean() > 10
    for number in range(200):
        rng = numpy_generator(0, "catalogue", number)
        person = sample_catalogue_person(rng)
        assert not is_reserved(person)
        assert not any(person[name] in values for name, values in WORN_BY_NOBODY.items())
        words = set(words_of(catalogue_caption({**person, "view": "front"}, rng)))
        assert words <= set(catalogue_words())
        stated = {name for name in HELD_OUT for value in SYNONYMS[name].get(person.get(name, ""), ()) if value in words}
        shared = {"black", "white", "red", "blue", "brown", "yellow", "plain", "striped", "checked"}
        assert not {name for name in stated if not set(SYNONYMS[name][person[name]]) & shared}


def test_the_word_list_holds_every_word_of_every_preset_and_of_the_noise():
    shown, captions = [], []
    for number, preset in enumerate(name for name in PRESETS for _ in range(60)):
        people = FreshPeople(number, "words", {preset: 1.0}, height=64, width=32)
        shown.append(people.person(0).shown)
    for rate in (0.0, 0.5, 1.0):
        noise = CaptionNoise(shown, rate)
        captions += [noise.corrupt(one, np.random.default_rng(i)).text for i, one in enumerate(shown)]
    captions += [compose(one, seed).text for one in shown[::4] for seed in range(30)]
    unsure = [{name: value for name, value in one.items() if name != "gender"} for one in shown]
    captions += [compose(one, seed).text for one in unsure[::2] for seed in range(15)]
    captions += [compose({"view": view}, seed).text for view in ATTRIBUTES["view"] for seed in range(20)]
    used = {word for caption in captions for word in words_of(caption)}
    assert used == set(LONG_VOCABULARY)  # it holds no other word
    short = {word for one in shown for word in words_of(short_caption(one, np.random.default_rng(0)))}
    assert short <= set(SHORT_VOCABULARY) < set(VOCABULARY)
    assert set(catalogue_words()) <= set(VOCABULARY)


def test_unknown_words_are_said_in_one_line_the_most_frequent_first():
    assert unknown_words(["a red Hat.", "red hat"], ["a", "red", "hat"]) is None
    line = unknown_words(["a mauve hat", "the mauve kilt"], ["a", "hat", "the"])
    assert line == "2 of 5 words, 3 times in all, are unknown to the model: mauve, kilt"
    many = unknown_words([f"word{i}" for i in range(20)], [])
    assert many is not None
    assert many.endswith(", ...")
    assert "\n" not in many
