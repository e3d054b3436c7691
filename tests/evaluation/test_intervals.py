"""Intervals cover the truth as often as they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from unicom_jax.evaluation.intervals import (
    jackknife,
    mean_interval,
    mean_of_proportions,
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


def test_mean_interval_is_the_normal_one():
    values = [1.0, 2.0, 3.0, 4.0]
    half = 1.959964 * np.std(values, ddof=1) / 2
    assert mean_interval(values) == pytest.approx((2.5, 2.5 - half, 2.5 + half))


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


def test_jackknife_of_a_mean_is_the_normal_interval():
    values = np.random.default_rng(0).normal(50, 5, 400)
    estimate = jackknife(lambda indices: float(values[indices].mean()), 400, groups=400)
    assert estimate == pytest.approx(mean_interval(values), rel=1e-6)


def test_jackknife_needs_three_samples():
    with pytest.raises(ValueError, match="at least 3"):
        jackknife(lambda indices: 0.0, 2)
