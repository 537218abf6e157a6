import difflib
from collections import Counter

import numpy as np
import pytest
import torch

from components.errors import ParameterError
from components.evaluation.auc import area_under_curve
from components.persons.drawn.attributes import ATTRIBUTES, sample_identities
from components.persons.drawn.caption_noise import NOISY_ATTRIBUTES, CaptionNoise, mark_false
from components.persons.drawn.captions import Caption, compose
from components.persons.drawn.drawing import draw_person
from components.training.randomness import numpy_generator


@pytest.fixture(scope="module")
def corpus():
    """What 800 pictures show (drawn at the smallest size)."""
    people = sample_identities(400, numpy_generator(21, "people"))
    return [
        draw_person(person, numpy_generator(21, i, copy), height=48, width=24).shown
        for i, person in enumerate(people)
        for copy in range(2)
    ]


def told_and_true(noise: CaptionNoise, shown: dict[str, str], seed: int) -> tuple[Caption, Caption, frozenset[str]]:
    told, false = noise.falsify(shown, numpy_generator(seed, "false"))
    return compose(told, seed), compose(shown, seed), false


def bare(word: str) -> str:
    return word.lower().strip(".,")


def test_at_rate_zero_nothing_is_wrong_and_at_rate_one_nothing_noisy_is_right(corpus):
    never, always = CaptionNoise(corpus, 0.0), CaptionNoise(corpus, 1.0)
    for seed, shown in enumerate(corpus[:100]):
        assert never.falsify(shown, numpy_generator(seed)) == (shown, frozenset())
    for seed, shown in enumerate(corpus[:100]):
        told, _ = always.falsify(shown, numpy_generator(seed))
        assert all(
            told[name] != shown[name]
            for name in NOISY_ATTRIBUTES
            if name in told
            and name in shown
            and not (name in ("hat_colour", "bag_colour", "bag_side") and told[name] == shown[name])
        )
        assert {n: told[n] for n in ("gender", "build", "view")} == {n: shown[n] for n in ("gender", "build", "view")}


def test_the_recorded_positions_are_where_the_caption_differs_from_the_true_one(corpus):
    noise, checked = CaptionNoise(corpus, 0.3), 0
    for seed, shown in enumerate(corpus):
        told, true, false = told_and_true(noise, shown, seed)
        recorded = set(mark_false(told, false).wrong_words)
        words, truth = told.text.split(), true.text.split()
        if {"hat", "bag", "lower_kind"} & false:
            continue  # phrases come and go: next test
        assert len(words) == len(truth)
        different = {i for i, (a, b) in enumerate(zip(words, truth, strict=True)) if a != b}
        assert recorded == different, (told.text, true.text)
        checked += len(different)
    assert checked > 500


def test_an_invented_phrase_is_marked_as_far_as_it_states_something(corpus):
    noise, invented = CaptionNoise(corpus, 0.3), 0
    for seed, shown in enumerate(corpus):
        told, true, false = told_and_true(noise, shown, seed)
        recorded = set(mark_false(told, false).wrong_words)
        words, truth = [[bare(w) for w in c.text.split()] for c in (told, true)]
        matched = {
            block.a + k
            for block in difflib.SequenceMatcher(None, words, truth, autojunk=False).get_matching_blocks()
            for k in range(block.size)
        }
        # A recorded word is one the truth does not say in its place: it states an attribute that is false.
        for position in recorded:
            word = told.words[position]
            assert word.attribute in false
            value_in_truth = [w.text for w in true.words if w.attribute == word.attribute]
            assert bare(word.text) not in [bare(text) for text in value_in_truth]
        if "hat" in false and shown["hat"] == "none" and "hat" in told.stated:
            marked = {told.words[i].attribute for i in recorded}
            assert "hat" in marked
            assert ("hat_colour" in told.stated) == ("hat_colour" in marked)
            invented += 1
        unmatched_statements = {i for i in set(range(len(words))) - matched if told.words[i].attribute in false}
        assert unmatched_statements <= recorded
    assert invented > 30


def test_noise_makes_captions_that_a_reader_can_read(corpus):
    noise = CaptionNoise(corpus, 0.5)
    for seed, shown in enumerate(corpus[:300]):
        told, _ = noise.falsify(shown, numpy_generator(seed))
        assert all(value in ATTRIBUTES[name] for name, value in told.items())
        assert ("hat_colour" in told) == (told.get("hat", "none") != "none")
        assert ("bag_colour" in told) == (told.get("bag", "none") != "none")
        assert not (told.get("gender") == "man" and told.get("lower_kind") == "skirt")
        assert 10 <= len(noise.corrupt(shown, numpy_generator(seed)).text.split()) <= 60


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_the_rate_is_the_share_of_statements_that_are_false(corpus, rate):
    noise, replaced, attributes, wrong, total = CaptionNoise(corpus, rate), 0, 0, 0, 0
    for seed, shown in enumerate(corpus):
        told, _, false = told_and_true(noise, shown, seed)
        replaced += sum(name in shown for name in false)
        attributes += sum(name in shown for name in NOISY_ATTRIBUTES)
        wrong += len(mark_false(told, false).wrong_words)
        total += sum(word.attribute in NOISY_ATTRIBUTES for word in told.words)
    assert abs(replaced / attributes - rate) < 4 * (rate * (1 - rate) / attributes) ** 0.5  # a binomial
    assert wrong / total == pytest.approx(rate, rel=0.08)  # what is invented adds some wrong words


def test_word_frequency_does_not_tell_wrong_words_from_right_ones(corpus):
    """The unigram statistic: by the words' log frequency, in noisy or true captions, wrong and right look alike."""
    noise = CaptionNoise(corpus, 0.25)
    captions = [told_and_true(noise, shown, 10_000 * copy + i) for copy in range(2) for i, shown in enumerate(corpus)]
    for frequency in (
        Counter(bare(w.text) for told, _, _ in captions for w in told.words),
        Counter(bare(w.text) for _, true, _ in captions for w in true.words),
    ):
        score: dict[tuple[bool, str], list[float]] = {}
        for told, _, false in captions:
            for word in told.words:
                if word.attribute in NOISY_ATTRIBUTES:
                    kind = word.attribute.split("_")[-1]
                    for group in ("all", kind):
                        value = np.log(frequency[bare(word.text)] or 0.5)
                        score.setdefault((word.attribute in false, group), []).append(value)
        for group in {group for _, group in score}:
            if len(score[True, group]) < 300:
                continue  # too few for the tolerance
            area = float(area_under_curve(torch.tensor(score[True, group]), torch.tensor(score[False, group])))
            assert 0.45 <= area <= 0.55, (group, area)


def test_a_value_is_told_wrongly_as_often_as_it_is_told_whatever_it_is():
    """Exact balance on a skewed marginal: wrong values are distributed as true ones."""
    p = {"black": 0.45, "white": 0.3, "red": 0.15, "blue": 0.1}
    shown = [
        {"gender": "man", "shoe_colour": colour} for colour, share in p.items() for _ in range(round(share * 4000))
    ]
    noise = CaptionNoise(shown, 1.0)
    rng = numpy_generator(0, "swaps")
    told = Counter(noise.falsify(picture, rng)[0]["shoe_colour"] for picture in shown)
    for colour, share in p.items():
        assert told[colour] / len(shown) == pytest.approx(share, abs=0.03)


def test_a_rate_that_is_no_probability_is_refused(corpus):
    with pytest.raises(ParameterError, match=r"-0\.1"):
        CaptionNoise(corpus, -0.1)
