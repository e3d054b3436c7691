"""Intervals cover the truth as often as they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from unicom_jax.evaluation.intervals import (
    clustered_wilson,
    mean_interval,
    mean_of_proportions,
    u_statistic_interval,
    wilson,
)


def test_wilson_matches_the_published_example():
    # Newcombe 1998, table I: 81 of 263.
    value, low, high = wilson(81, 263)
    assert (value, low, high) == pytest.approx((81 / 263, 0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize("successes", [0, 7, 20])
def test_wilson_stays_inside_the_unit_interval_and_holds_its_value(successes):
    value, low, high = wilson(successes, 20)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.1


@pytest.mark.parametrize("truth", [0.1, 0.3, 0.5, 0.8])
def test_wilson_covers_the_truth_in_about_95_percent_of_the_samples(truth):
    chances = binom.pmf(np.arange(65), 64, truth)
    covered = [low <= truth <= high for _, low, high in (wilson(k, 64) for k in range(65))]
    assert chances[covered].sum() == pytest.approx(0.95, abs=0.02)


def test_no_samples_make_no_proportion():
    with pytest.raises(ValueError, match="at least 1 sample"):
        wilson(0, 0)


@pytest.mark.parametrize("count", [3, 10, 40])
def test_the_interval_of_a_mean_covers_the_truth_at_every_number_of_samples(count):
    samples = np.random.default_rng(0).normal(1.0, 2.0, (1500, count))
    covered = [low <= 1.0 <= high for _, low, high in map(mean_interval, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_the_interval_of_a_mean_is_students():
    # Quantile of t with 3 degrees of freedom: 3.182446.
    half = 3.182446 * np.std([1.0, 2.0, 3.0, 4.0], ddof=1) / 2
    assert mean_interval([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, 2.5 - half, 2.5 + half))


def test_the_interval_of_a_mean_is_cut_where_values_end():
    values = [0.9, 1.0, 1.0]
    assert mean_interval(values, bounds=(0.0, 1.0)).high == 1.0 < mean_interval(values).high


def questions(rng, pictures, each, spread):
    """Outcomes of `each` questions about every picture; pictures are unlike by `spread`."""
    rates = np.clip(0.5 + spread * rng.choice((-1, 1), pictures), 0, 1)
    outcomes = rng.random((pictures, each)) < rates[:, None]
    return outcomes.ravel(), np.repeat(np.arange(pictures), each)


def coverage(interval, truth=0.5, **sizes):
    rng = np.random.default_rng(0)
    found = [interval(*questions(rng, **sizes)) for _ in range(600)]
    return np.mean([low <= truth <= high for _, low, high in found])


@pytest.mark.parametrize("interval", [clustered_wilson, mean_interval])
@pytest.mark.parametrize("spread", [0.0, 0.3, 0.5])
def test_questions_about_one_picture_do_not_count_as_independent(interval, spread):
    sizes = {"pictures": 20, "each": 6, "spread": spread}
    assert coverage(interval, **sizes) > 0.92
    alone = coverage(lambda outcomes, _: wilson(int(outcomes.sum()), outcomes.size), **sizes)
    assert alone < 0.85 or spread == 0.0


def test_clusters_of_one_sample_give_wilsons_interval():
    outcomes = [True, False, True, True, False]
    assert clustered_wilson(outcomes, range(5)) == wilson(3, 5)


def test_equal_outcomes_count_clusters():
    assert clustered_wilson([True] * 12, [0, 1, 2, 3] * 3) == pytest.approx(wilson(4, 4))


def test_clusters_of_one_value_give_the_plain_interval_of_a_mean():
    values = [0.1, 0.4, 0.9]
    assert mean_interval(values, "abc") == pytest.approx(mean_interval(values))


def test_one_cluster_has_no_interval_of_a_mean():
    with pytest.raises(ValueError, match="in 1 clusters has no interval"):
        mean_interval([0.1, 0.4, 0.9], "aaa")


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="at least 2 samples"):
        mean_interval([1.0])


def test_mean_of_one_proportion_is_that_proportion():
    assert mean_of_proportions([wilson(3, 10)]) == pytest.approx(wilson(3, 10))


def test_mean_of_proportions_is_narrower_than_its_parts():
    parts = [wilson(3, 10), wilson(6, 10), wilson(9, 10)]
    value, low, high = mean_of_proportions(parts)
    assert value == pytest.approx(0.6)
    assert low < value < high
    assert high - low < min(part.high - part.low for part in parts)


def test_a_u_statistic_of_a_sum_is_twice_the_mean():
    values = np.random.default_rng(0).normal(50, 5, 60)
    found = u_statistic_interval(values[:, None] + values[None])
    assert np.array(found) == pytest.approx(2 * np.array(mean_interval(values)))


def test_a_jackknife_needs_three_samples():
    with pytest.raises(ValueError, match="at least 3"):
        u_statistic_interval(np.zeros((2, 2)))
