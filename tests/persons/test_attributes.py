import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import ParameterError
from components.persons.drawn.attributes import (
    ATTRIBUTES,
    IDENTITY_ATTRIBUTES,
    applies,
    difference,
    identity_key,
    sample_identities,
    value_weights,
)
from components.training.randomness import numpy_generator


def test_there_are_thirteen_attributes_or_more_and_every_value_is_named_once():
    assert len(IDENTITY_ATTRIBUTES) >= 13
    assert all(len(values) == len(set(values)) > 1 for values in ATTRIBUTES.values())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), fraction=st.floats(0, 1))
def test_no_two_identities_share_a_combination_and_all_values_are_allowed(seed, fraction):
    identities = sample_identities(60, numpy_generator(seed, "people"), near_duplicates=fraction)
    assert len({identity_key(person) for person in identities}) == 60
    for person in identities:
        for name in IDENTITY_ATTRIBUTES:
            assert applies(name, person) == (name in person)
            assert name not in person or person[name] in ATTRIBUTES[name]


@pytest.mark.parametrize(("count", "fraction"), [(40, 0.5), (30, 1.0), (7, 1.0), (20, 0.0), (41, 0.3)])
def test_the_asked_fraction_has_a_neighbour_that_differs_in_one_attribute(count, fraction):
    identities = sample_identities(count, numpy_generator(1, "people"), near_duplicates=fraction)
    twins = [
        i
        for i, person in enumerate(identities)
        if any(len(difference(person, other)) == 1 for j, other in enumerate(identities) if i != j)
    ]
    asked = round(count * fraction)
    assert twins == list(range(asked))


def test_people_of_another_split_are_not_sampled_again():
    taken = sample_identities(50, numpy_generator(0, "same"))
    fresh = sample_identities(50, numpy_generator(0, "same"), taken=taken)
    assert not {identity_key(p) for p in taken} & {identity_key(p) for p in fresh}


def test_no_value_is_more_frequent_than_all_others_together_so_that_swaps_can_balance():
    for gender in ATTRIBUTES["gender"]:
        for name in IDENTITY_ATTRIBUTES:
            weights = value_weights(name, gender)
            assert len(weights) == len(ATTRIBUTES[name])
            assert weights.max() <= 0.5 + 1e-12


def test_impossible_requests_name_the_value():
    with pytest.raises(ParameterError, match=r"1\.5"):
        sample_identities(3, numpy_generator(0), near_duplicates=1.5)
    with pytest.raises(ParameterError, match="-1"):
        sample_identities(-1, numpy_generator(0))
