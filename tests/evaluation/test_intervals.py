import itertools
import math

import numpy as np
import pytest

from components.errors import ParameterError
from components.evaluation.intervals import bootstrap_crossed, bootstrap_difference, bootstrap_mean


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        interval = bootstrap_mean(random.normal(3.0, 2.0, 60), level=0.9, resamples=300, seed=trial)
        hits += interval.low <= 3.0 <= interval.high
    # Binomial(300, 0.9) has deviation 5.2; the percentile interval at n = 60 is about one point too narrow.
    assert 250 <= hits <= 288


def test_the_interval_is_the_quantiles_of_every_possible_resample():
    values = np.array([0.0, 1.0, 5.0, 6.0])
    every = np.stack(np.meshgrid(*[values] * 4), -1).reshape(-1, 4).mean(1)  # all 256 resamples
    # Levels whose quantiles lie 0.008 or more inside a step of the distribution, five deviations of 40,000 resamples.
    for level, ends in ((0.8, (1.5, 4.5)), (0.6, (1.75, 4.25))):
        assert ends == tuple(np.quantile(every, [(1 - level) / 2, (1 + level) / 2]))
        interval = bootstrap_mean(values, level=level, resamples=40_000, seed=1)
        assert (interval.mean, interval.low, interval.high) == (3.0, *ends)


def test_copies_of_a_unit_do_not_narrow_the_interval():
    values = np.random.default_rng(0).normal(size=40)
    alone = bootstrap_mean(values, seed=3)
    units = np.repeat(np.arange(40), 25)
    copied = bootstrap_mean(np.repeat(values, 25), units=units, seed=3)
    pretending = bootstrap_mean(np.repeat(values, 25), seed=3)
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert pretending.high - pretending.low < 0.3 * (alone.high - alone.low)


def test_units_of_unequal_size_weigh_as_in_the_plain_mean():
    values = np.array([1.0, 1.0, 1.0, 5.0])
    interval = bootstrap_mean(values, units=["a", "a", "a", "b"], resamples=4000, level=0.98)
    assert interval.mean == 2.0
    assert (interval.low, interval.high) == (1.0, 5.0)  # all "a" and all "b" each have probability 1/4


def test_pairing_removes_what_both_measurements_share():
    random = np.random.default_rng(0)
    shared = random.normal(0, 10, 200)
    interval = bootstrap_difference(shared + 0.5 + random.normal(0, 0.1, 200), shared)
    assert interval.low < 0.5 < interval.high
    assert interval.high - interval.low < 0.1


def test_missing_values_are_left_out():
    assert bootstrap_mean([1.0, math.nan, 3.0]).mean == 2.0
    assert bootstrap_difference([1.0, 4.0, math.nan], [0.0, math.nan, 1.0]).mean == 1.0


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


@pytest.mark.parametrize("values", [[], [math.nan]])
def test_nothing_to_average_is_refused(values):
    with pytest.raises(ParameterError, match="no values"):
        bootstrap_mean(values)


def test_unpaired_lengths_and_bad_settings_are_refused():
    with pytest.raises(ParameterError, match="paired"):
        bootstrap_difference([1.0, 2.0], [1.0])
    with pytest.raises(ParameterError, match="level"):
        bootstrap_mean([1.0], level=95)
    with pytest.raises(ParameterError, match="units"):
        bootstrap_mean([1.0, 2.0], units=["a"])


def test_crossed_resampling_is_the_quantiles_of_every_pair_of_resamples():
    table = np.array([[0.0, 4.0, 9.0], [1.0, 7.0, 30.0]])
    every = [
        table[np.ix_(rows, columns)].mean()
        for rows in itertools.product(range(2), repeat=2)
        for columns in itertools.product(range(3), repeat=3)
    ]  # all 4 x 27
    interval = bootstrap_crossed(table, level=0.63, resamples=60_000, seed=1)
    assert interval.mean == pytest.approx(table.mean())
    # At this level both quantiles lie 0.01 inside a step of the distribution, six deviations of 60,000 resamples.
    assert interval.low == pytest.approx(np.quantile(every, 0.185)) == pytest.approx(3.0)
    assert interval.high == pytest.approx(np.quantile(every, 0.815)) == pytest.approx(79 / 6)


def test_seeds_that_disagree_widen_a_crossed_interval_and_copies_of_a_seed_do_not_narrow_it():
    random = np.random.default_rng(0)
    prompts = random.normal(0, 10, 200)
    alone = bootstrap_mean(prompts, seed=2)
    once = bootstrap_crossed(prompts[None], seed=2)
    copied = bootstrap_crossed(np.tile(prompts, (5, 1)), seed=2)
    for interval in (once, copied):
        assert width(interval) == pytest.approx(width(alone), rel=0.1)
    apart = bootstrap_crossed(prompts + np.array([[-3.0], [-1.0], [0.0], [1.0], [3.0]]), seed=2)
    # Variances of both means add up: 10^2 / 200 over prompts, 4 / 5 over seeds; 3.92 deviations is 95 %.
    assert width(apart) == pytest.approx(3.92 * math.sqrt(prompts.var() / 200 + 4 / 5), rel=0.1)


def test_a_crossed_mean_leaves_out_missing_values():
    table = np.array([[1.0, math.nan, 3.0], [5.0, math.nan, math.nan]])
    interval = bootstrap_crossed(table)
    assert interval.mean == 3.0
    assert (interval.low, interval.high) == (1.0, 5.0)


@pytest.mark.parametrize(
    ("values", "message"), [([1.0, 2.0], "repetitions x items"), ([[math.nan]], "no values"), ([[]], "no values")]
)
def test_a_crossed_mean_of_nothing_or_of_another_shape_is_refused(values, message):
    with pytest.raises(ParameterError, match=message):
        bootstrap_crossed(values)


def width(interval):
    return interval.high - interval.low
