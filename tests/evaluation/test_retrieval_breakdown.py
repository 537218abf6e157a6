import json

import pytest
import torch

from components.errors import DataError, ParameterError
from components.evaluation.breakdown import by_attribute, by_group, by_noise_level, mistaken_attributes, recaption
from components.evaluation.intervals import bootstrap_mean
from components.evaluation.retrieval import retrieval_results
from components.evaluation.retrieval_result import RetrievalResult
from components.persons.drawn.attributes import sample_identities
from components.training.randomness import numpy_generator


def results(ranks):
    """Queries whose right picture, the only one, is at these ranks; 0: there is none."""
    precision = [1 / rank if rank else 0.0 for rank in ranks]
    table = {"first_rank": ranks, "average_precision": precision, "inverse_negative_penalty": precision}
    return RetrievalResult.from_columns(table)


def test_each_part_has_the_metrics_of_its_queries_alone():
    found = by_group(results([1, 3, 1, 20, 0, 2]), ["a", "b", "a", "b", "b", None], [7, 7, 8, 9, 9, 9])
    assert list(found) == ["a", "b"]
    assert (found["a"].queries, found["a"].identities, found["a"].metrics["R@1"]) == (2, 2, 100)
    assert (found["b"].queries, found["b"].identities) == (2, 2)
    mean = pytest.approx(100 * (1 / 3 + 1 / 20) / 2)
    assert found["b"].metrics == {"R@1": 0, "R@5": 50, "R@10": 50, "mAP": mean, "mINP": mean, "tied_share": 0}
    assert json.loads(json.dumps(found["b"].as_dict()))["queries"] == 2


def test_the_interval_resamples_people_and_not_sentences():
    ranks, people = [1, 1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 2, 2, 2, 2]
    interval = by_group(results(ranks), ["a"] * 8, people, resamples=500, seed=3)["a"].interval
    assert (interval.low, interval.mean, interval.high) == (0, 50, 100)
    hits = [100.0] * 4 + [0.0] * 4
    assert interval == bootstrap_mean(hits, units=people, resamples=500, seed=3)


def test_a_group_of_one_person_has_no_interval():
    found = by_group(results([1, 2, 1, 2]), ["a", "a", "b", "b"], [7, 7, 8, 9])
    assert found["a"].interval is None
    assert found["a"].as_dict()["R@1_interval"] == {"mean": 50}
    assert found["b"].as_dict()["R@1_interval"] == {"mean": 50, "low": 0, "high": 100}


def test_a_query_counts_under_every_attribute_that_its_picture_shows():
    shown = [{"hat": "cap", "hat_colour": "red"}, {"hat": "none"}, {"hat": "cap", "hat_colour": "blue"}]
    found = by_attribute(results([1, 1, 4]), shown, [1, 2, 3])
    assert list(found) == ["hat", "hat_colour"]
    assert [list(values) for values in found.values()] == [["cap", "none"], ["blue", "red"]]
    assert found["hat"]["cap"].metrics["R@1"] == 50
    assert [found["hat_colour"][colour].metrics["R@1"] for colour in ("blue", "red")] == [0, 100]


def test_a_group_where_nobody_can_be_found_is_left_out_and_lengths_must_agree():
    assert by_group(results([0, 1]), ["a", "b"], [1, 2]).keys() == {"b"}
    with pytest.raises(DataError, match="2 queries, 1 groups and 2 identities"):
        by_group(results([0, 1]), ["a"], [1, 2])


@pytest.fixture(scope="module")
def people():
    return [dict(person) for person in sample_identities(120, numpy_generator(0, "people", "test"))]


def test_recaptioned_sentences_are_true_at_rate_zero_and_falser_at_higher_rates(people):
    counts = [
        sum(len(caption.wrong_words) for caption in recaption(people, people, rate, 5)) for rate in (0.0, 0.2, 0.4)
    ]
    assert counts[0] == 0
    assert 1.5 < counts[2] / counts[1] < 2.5
    assert recaption(people, people, 0.2, 5) == recaption(people, people, 0.2, 5)
    assert recaption(people, people, 0.2, 5) != recaption(people, people, 0.2, 6)
    with pytest.raises(ParameterError):
        recaption(people, people, 1.2, 5)


def test_an_embedding_of_words_finds_fewer_people_the_more_words_are_false(people):
    """A bag of words as both towers: pictures are the true sentences."""
    true = [caption.text for caption in recaption(people, people, 0.0, 1)]
    vocabulary = {word: i for i, word in enumerate(sorted({w for text in true for w in text.lower().split()}))}

    def embed(sentences):
        bags = torch.zeros(len(sentences), len(vocabulary))
        for row, text in enumerate(sentences):
            for word in text.lower().split():
                if word in vocabulary:
                    bags[row, vocabulary[word]] += 1
        return bags

    ids = torch.arange(len(people))
    found = by_noise_level([0.0, 0.3, 0.9], people, people, embed, embed(true), ids, ids, seed=1)
    rates = [part.metrics["R@1"] for part in found.values()]
    assert rates[0] == 100  # the same sentence, word by word
    assert rates[0] > rates[1] > rates[2]
    at_30 = retrieval_results(embed([c.text for c in recaption(people, people, 0.3, 1)]), embed(true), ids, ids)
    assert found[0.3].metrics["mAP"] == at_30.metrics()["mAP"]


def test_what_a_wrong_picture_gets_wrong_is_held_against_a_random_one():
    gallery = [
        {"hat": "cap", "top": "red"},
        {"hat": "none", "top": "red"},
        {"hat": "cap", "top": "blue"},
        {"hat": "cap"},
    ]
    wanted = [gallery[0], gallery[2], gallery[3]]
    found = mistaken_attributes(wanted, [gallery[1], gallery[0], gallery[0]], gallery)
    assert list(found) == ["hat", "top"]
    assert (found["hat"].misses, found["top"].misses) == (3, 2)  # the third shows no top
    assert found["hat"].share == pytest.approx(100 / 3)
    assert found["hat"].chance == pytest.approx(100 * (1 / 4 + 1 / 4 + 1 / 4) / 3)
    assert found["top"].share == 50  # red for red, red for blue
    assert found["top"].chance == pytest.approx(100 * (2 / 4 + 3 / 4) / 2)
    assert json.loads(json.dumps(found["top"].as_dict()))["misses"] == 2
    with pytest.raises(DataError, match="1 misses, 0 found pictures"):
        mistaken_attributes([{}], [], gallery)


def test_a_group_counts_ties_as_the_whole_does():
    table = {
        "first_rank": [1, 1, 2],
        "tied_relevant": [1, 1, 1],
        "tied_irrelevant": [3, 0, 1],
        "average_precision": [0.5, 1.0, 0.4],
        "inverse_negative_penalty": [0.5, 1.0, 0.4],
        "tied": [True, False, True],
    }
    found = by_group(RetrievalResult.from_columns(table), ["a", "a", "b"], [1, 2, 3])
    assert (found["a"].metrics["R@1"], found["a"].metrics["tied_share"]) == (100 * (1 / 4 + 1) / 2, 50)
    assert (found["a"].interval.mean, found["b"].metrics["R@1"]) == (62.5, 0)
    assert found["b"].metrics["R@5"] == 100
