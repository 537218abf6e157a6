import re

import numpy as np
import pytest

from components.errors import DataError
from components.persons.drawn.attributes import ATTRIBUTES, sample_identities
from components.persons.drawn.captions import SHORT_MAX_WORDS, SHORT_VOCABULARY, compose, short_caption
from components.persons.drawn.config import PRESETS
from components.persons.drawn.drawing import draw_person
from components.persons.drawn.lexicon import states_fact
from components.persons.drawn.rewording import noun_first
from components.training.randomness import numpy_generator

# An independent reading of captions: which words name what, written down here and not taken from the lexicon.
NOUNS = {
    **dict.fromkeys(("shirt", "tee", "t-shirt"), ("upper", "shirt")),
    **dict.fromkeys(("sweater", "pullover", "jumper"), ("upper", "sweater")),
    **dict.fromkeys(("hoodie", "hoody"), ("upper", "hoodie")),
    **dict.fromkeys(("jacket",), ("upper", "jacket")),
    **dict.fromkeys(("coat", "greatcoat"), ("upper", "coat")),
    **dict.fromkeys(("trousers", "pants"), ("lower", "trousers")),
    "shorts": ("lower", "shorts"),
    "skirt": ("lower", "skirt"),
    **dict.fromkeys(("sneakers", "trainers"), ("shoe", "sneakers")),
    "boots": ("shoe", "boots"),
    "sandals": ("shoe", "sandals"),
    "cap": ("hat", "cap"),
    "beanie": ("hat", "beanie"),
    "sunhat": ("hat", "sunhat"),
    **dict.fromkeys(("backpack", "rucksack"), ("bag", "backpack")),
    **dict.fromkeys(("handbag", "purse"), ("bag", "handbag")),
    "satchel": ("bag", "satchel"),
    "hair": ("hair", ""),
    **dict.fromkeys(("man", "guy", "gentleman"), ("person", "man")),
    **dict.fromkeys(("woman", "lady", "female"), ("person", "woman")),
    "person": ("person", ""),
}
COLOURS = {
    c: c
    for c in [
        "black",
        "white",
        "gray",
        "blue",
        "red",
        "green",
        "yellow",
        "brown",
        "pink",
        "purple",
        "blond",
        "ginger",
        "silver",
    ]
}
COLOURS |= {"grey": "gray", "scarlet": "red", "violet": "purple", "blonde": "blond", "chestnut": "brown"}
COLOURS |= {"copper": "ginger", "silvery": "silver"}
PATTERNS = {"plain": "plain", "solid": "plain", "striped": "striped", "stripy": "striped", "checked": "checked"}
PATTERNS |= {"checkered": "checked", "dotted": "dotted", "spotted": "dotted"}
LENGTHS = {"short": "short", "cropped": "short", "shoulder-length": "medium", "medium-length": "medium"}
LENGTHS |= {"long": "long", "flowing": "long"}
BUILDS = {"slim": "slim", "thin": "slim", "slender": "slim", "medium-built": "medium", "heavy": "heavy"}
BUILDS |= {"stocky": "heavy", "heavyset": "heavy", "medium": "medium"}
SKINS = {"pale": "pale", "fair-skinned": "pale", "tanned": "tan", "tan-skinned": "tan", "dark-skinned": "dark"}
SKINS |= {"tan": "tan", "dark": "dark"}


def read(caption: str) -> dict[str, str]:
    """The attributes a long caption states, found from its words: adjectives belong to the noun of their clause."""
    facts: dict[str, str] = {}

    def state(name: str, value: str) -> None:
        assert facts.setdefault(name, value) == value, (name, caption)

    words = re.findall(r"[a-z'-]+|[.,]", caption.lower())
    nouns = [i for i, word in enumerate(words) if word in NOUNS and (word != "person" or words[i - 1] == "a")]
    for index, word in enumerate(words):
        if word in ("left", "right"):
            bag = words[index + 1] == "side" or "viewer's" in words[index - 1]
            state("bag_side" if bag else "view", word)
            continue
        if word == "behind" or (word == "front" and words[index - 1] == "the"):
            state("view", "back" if word == "behind" else "front")
            continue
        if index in nouns:
            group, value = NOUNS[word]
            name = {"person": "gender", "hat": "hat", "bag": "bag"}.get(group, f"{group}_kind")
            if value:
                state(name, value)
            continue
        if word in SKINS or word in BUILDS:
            state("skin" if word in SKINS else "build", SKINS.get(word) or BUILDS[word])
            continue
        if word not in COLOURS and word not in PATTERNS and word not in LENGTHS:
            continue
        # "... that is X and Y", "a hat in X" look back; otherwise the next noun.
        before = [i for i in nouns if i < index]
        back = words[index - 1] == "in" and not any(index < i <= index + 2 for i in nouns)
        back |= bool(before) and words[before[-1] + 1 : before[-1] + 3] == ["that", "is"] and index <= before[-1] + 5
        group = NOUNS[words[before[-1] if back else min(i for i in nouns if i > index)]][0]
        if word in LENGTHS:
            assert group == "hair"
            state("hair_length", LENGTHS[word])
        elif word in COLOURS:
            state(f"{group}_colour", COLOURS[word])
        else:
            state(f"{group}_pattern", PATTERNS[word])
    return facts


@pytest.fixture(scope="module")
def pictures():
    """What 240 pictures show, in all presets."""
    people = sample_identities(80, numpy_generator(11, "people"))
    return [
        draw_person(person, numpy_generator(11, preset, i), degradation=strengths).shown
        for preset, strengths in PRESETS.items()
        for i, person in enumerate(people)
    ]


def long_caption(shown, rng):
    return compose(shown, int(rng.integers(2**62))).text


def test_long_captions_state_only_what_the_picture_shows(pictures):
    stated = 0
    for index, shown in enumerate(pictures):
        for copy in range(4):
            caption = long_caption(shown, numpy_generator(index, copy))
            facts = read(caption)
            assert facts.items() <= shown.items(), (caption, set(facts.items()) - set(shown.items()))
            stated += len(facts)
    assert stated > 4 * 6 * len(pictures)


def test_the_words_marked_as_statements_are_those_a_reader_finds(pictures):
    for index, shown in enumerate(pictures):
        caption = compose(shown, index)
        assert caption.stated == set(read(caption.text)), caption.text
        assert [word.text for word in caption.words] == caption.text.split()


def test_a_word_alone_tells_whether_it_states_a_fact(pictures):
    """Exact for every caption: no word that fills a sentence is one for a value."""
    for seed, shown in enumerate(pictures):
        for word in compose(shown, seed).words:
            assert states_fact(word.text) == bool(word.attribute), word


def test_long_captions_have_ten_to_sixty_words_and_vary(pictures):
    for index, shown in enumerate(pictures):
        captions = {long_caption(shown, numpy_generator(index, copy)) for copy in range(6)}
        assert len(captions) >= 5
        assert all(10 <= len(caption.split()) <= 60 for caption in captions)
        assert all(caption[0].isupper() and caption[-1] == "." and "{" not in caption for caption in captions)


def test_even_a_picture_that_shows_nearly_nothing_gets_a_sentence():
    for shown in (
        {"view": "front"},
        {"hat": "none"},
        {"gender": "man", "view": "back"},
        {"hair_length": "long", "hair_colour": "red"},
    ):
        if "hair_colour" in shown:
            shown = {**shown, "hair_colour": "brown"}
        for seed in range(20):
            assert 10 <= len(compose(shown, seed).words) <= 60
        assert short_caption(shown, numpy_generator(0))


def test_short_captions_state_every_shown_attribute_once_and_nothing_else(pictures):
    words_of = {"view": {"leftward": "left", "rightward": "right"}}
    for index, shown in enumerate(pictures):
        words = short_caption(shown, numpy_generator(index)).split()
        assert len(words) <= SHORT_MAX_WORDS
        assert set(words) <= set(SHORT_VOCABULARY)
        expected = []
        for name, value in shown.items():
            if value == "none":
                assert f"no {name}" in " ".join(words)
            else:
                expected.append({v: k for k, v in words_of.get(name, {}).items()}.get(value, value))
        glue = {"a", "view", "of", "person", "with", "hair", "no", "hat", "bag"}
        assert sorted(word for word in words if word not in glue) == sorted(expected)


def test_short_captions_bind_colours_and_patterns_to_the_noun_that_follows(pictures):
    for index, shown in enumerate(pictures):
        text = f" {short_caption(shown, numpy_generator(index, 1))} "
        for noun, adjectives in (
            ("upper_kind", ("upper_pattern", "upper_colour")),
            ("lower_kind", ("lower_pattern", "lower_colour")),
            ("shoe_kind", ("shoe_colour",)),
            ("hat", ("hat_colour",)),
            ("bag", ("bag_side", "bag_colour")),
        ):
            if shown.get(noun, "none") != "none":
                phrase = " ".join(shown[name] for name in (*adjectives, noun) if name in shown)
                assert f" {phrase} " in text


def test_a_caption_turned_round_has_the_noun_before_what_describes_it(pictures):
    for index, shown in enumerate(pictures):
        caption = short_caption(shown, numpy_generator(index, 1))
        turned = noun_first(caption)
        assert sorted(turned.split()) == sorted(caption.split())
        assert turned.partition(" with ")[0] == caption.partition(" with ")[0]
        for phrase in (
            ("upper_kind", "upper_colour", "upper_pattern"),
            ("lower_kind", "lower_colour", "lower_pattern"),
            ("shoe_kind", "shoe_colour"),
            ("hat", "hat_colour"),
            ("bag", "bag_colour", "bag_side"),
        ):
            if shown.get(phrase[0], "none") != "none":
                assert f" {' '.join(shown[name] for name in phrase if name in shown)} " in f" {turned} "
        for thing in ("hat", "bag"):
            if shown.get(thing) == "none":
                assert f" no {thing} " in f" {turned} "
        if "hair_length" in shown:
            assert f" hair {shown['hair_colour']} {shown['hair_length']} " in f" {turned} "


def test_a_sentence_is_not_turned_round():
    assert noun_first("front view of person") == "front view of person"
    with pytest.raises(DataError, match="not a short caption"):
        noun_first("A woman with a red coat that is long.")


def test_the_short_vocabulary_is_small_and_covers_every_value():
    assert len(SHORT_VOCABULARY) <= 120
    named = {value for name, values in ATTRIBUTES.items() if name != "view" for value in values} - {"none"}
    assert named <= set(SHORT_VOCABULARY)


def test_replacing_one_value_replaces_only_its_words(pictures):
    rng = np.random.default_rng(0)
    for index, shown in enumerate(pictures):
        if "upper_colour" not in shown:
            continue
        other = str(rng.choice([c for c in ATTRIBUTES["upper_colour"] if c != shown["upper_colour"]]))
        truth, told = compose(shown, index), compose({**shown, "upper_colour": other}, index)
        assert len(truth.words) == len(told.words)
        changed = [a.attribute for a, b in zip(truth.words, told.words, strict=True) if a.text != b.text]
        assert changed == [w.attribute for w in truth.words if w.attribute == "upper_colour"]
