"""Paired comparisons over seeds and items: what they find, and how often they are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from unicom_jax.sweeps.statistics import (
    BETTER,
    UNDECIDED,
    WORSE,
    Outcomes,
    effect_of,
    holm,
    verdict,
)


def runs(values, items=None):
    """Outcomes by seed; `items`: an array (seeds, items) of outcomes whose mean is the score."""
    if items is None:
        return {seed: Outcomes(value) for seed, value in enumerate(values)}
    count = items.shape[1]
    return {
        seed: Outcomes(float(row.mean()), {str(i): x / count for i, x in enumerate(row)})
        for seed, row in enumerate(items)
    }


def test_the_interval_over_seeds_is_that_of_a_paired_t_test():
    first, second = [0.5, 0.62, 0.55], [0.41, 0.5, 0.49]
    effect = effect_of(runs(first), runs(second))
    paired = scipy.stats.ttest_rel(first, second)
    low, high = paired.confidence_interval(0.95)
    assert effect.interval == pytest.approx((np.mean(first) - np.mean(second), low, high))
    assert effect.p == pytest.approx(paired.pvalue)
    assert effect.items is None and effect.pairs == 3


def test_one_pair_of_runs_has_an_interval_over_items_alone():
    rng = np.random.default_rng(0)
    outcomes = rng.random((2, 1, 200)) < [[[0.8]], [[0.5]]]
    effect = effect_of(*(runs((), one) for one in outcomes))
    assert effect.seeds is None and effect.interval == effect.items
    error = (outcomes[0, 0].astype(float) - outcomes[1, 0]).std(ddof=1) / math.sqrt(200)
    half = (effect.interval.high - effect.interval.low) / 2
    assert half == pytest.approx(1.96 * error, rel=0.1)
    assert effect.count == 200 and effect.p < 1e-6


def test_items_of_one_picture_are_resampled_together():
    """Ten equal questions about a picture are no more than one."""
    rng = np.random.default_rng(1)
    pictures = (rng.random((2, 40)) < [[0.7], [0.4]]).astype(float)
    many = np.repeat(pictures, 10, axis=1)
    clusters = {str(i): f"picture {i // 10}" for i in range(400)}
    alone = effect_of(*(runs((), row[None]) for row in pictures))

    def clustered(row):
        return {0: Outcomes(row.mean(), {str(i): x / 400 for i, x in enumerate(row)}, clusters)}

    assert effect_of(*map(clustered, many)).interval == pytest.approx(alone.interval)


def test_pairing_by_item_makes_the_interval_of_similar_models_small():
    rng = np.random.default_rng(2)
    hard = rng.random(300) < 0.5
    better = hard.copy()
    better[rng.choice(np.flatnonzero(~hard), 20, replace=False)] = True
    effect = effect_of(runs((), better[None].astype(float)), runs((), hard[None].astype(float)))
    unpaired = 2 * 1.96 * math.sqrt(2 * 0.25 / 300)
    assert effect.interval.low > 0
    assert effect.interval.high - effect.interval.low < unpaired / 2


def test_an_interval_of_seeds_and_items_is_wider_than_either():
    rng = np.random.default_rng(3)
    first, second = (rng.random((2, 3, 100)) < [[[0.7]], [[0.5]]]).astype(float)
    effect = effect_of(runs((), first), runs((), second))
    width = effect.interval.high - effect.interval.low
    assert width > effect.items.high - effect.items.low
    assert math.isfinite(effect.p)


def test_intervals_of_equal_models_contain_zero_about_as_often_as_they_say():
    """Seeds and items both vary: of 200 comparisons of equals about 5% exclude 0."""
    rng, wrong = np.random.default_rng(4), 0
    for _ in range(200):
        easy = rng.random(60)
        outcomes = [
            (rng.random((3, 60)) < np.clip(easy + rng.normal(0, 0.05, (3, 1)), 0, 1)).astype(float)
            for _ in range(2)
        ]
        interval = effect_of(*(runs((), one) for one in outcomes)).interval
        wrong += not interval.low <= 0 <= interval.high
    assert wrong <= 20


def test_seeds_that_agree_by_chance_decide_no_more_than_they_do_alone():
    """Their differences vary far more than the items. With degrees of freedom of the items, 10% of
    comparisons of equals over two seeds would be decided."""
    rng, items, decided = np.random.default_rng(7), np.linspace(-1, 1, 50)[None], 0
    for _ in range(300):
        outcomes = items + rng.normal(0, 0.8, (2, 1))
        effect = effect_of(runs((), outcomes), runs((), np.zeros_like(outcomes)))
        assert effect.interval.high >= effect.seeds.high - 1e-9
        assert effect.p >= scipy.stats.ttest_1samp(outcomes.mean(1), 0).pvalue - 1e-9
        decided += effect.p < 0.05
    assert decided <= 24


@pytest.mark.parametrize("count", [3, 12])
def test_a_few_items_decide_about_equal_models_as_rarely_as_many(count):
    """With one seed, about 5% of 300 comparisons of equals exclude 0; by percentiles alone, many
    more would."""
    rng, wrong = np.random.default_rng(5), 0
    for _ in range(300):
        items = rng.normal(size=(1, count))
        effect = effect_of(runs((), items), runs((), np.zeros_like(items)))
        wrong += not effect.interval.low <= 0 <= effect.interval.high
    assert wrong <= 27


def test_the_standard_error_over_items_is_that_of_their_mean():
    items = np.random.default_rng(6).normal(size=(1, 8))
    effect = effect_of(runs((), items), runs((), np.zeros_like(items)))
    assert effect.p == pytest.approx(scipy.stats.ttest_1samp(items[0], 0).pvalue, abs=0.03)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_finite_number_is_named(value):
    with pytest.raises(ValueError, match=f"of seed 1, the scores are {value} and 1"):
        effect_of(runs([1.0, value]), runs([0.0, 1.0]))


def test_only_seeds_that_both_variants_have_are_paired():
    first = {0: Outcomes(1.0), 1: Outcomes(2.0), 2: Outcomes(9.0)}
    second = {0: Outcomes(0.0), 1: Outcomes(1.5)}
    effect = effect_of(first, second)
    assert (effect.pairs, effect.interval.value) == (2, 0.75)
    with pytest.raises(ValueError, match="no seed in common"):
        effect_of({0: Outcomes(1.0)}, {1: Outcomes(1.0)})


def test_runs_that_were_scored_on_other_items_are_refused():
    one, other = ({0: Outcomes(1.0, {item: 1.0})} for item in "ab")
    with pytest.raises(ValueError, match="scored on different items"):
        effect_of(one, other)


def test_a_score_of_one_run_without_items_is_never_decided():
    effect = effect_of({0: Outcomes(2.0)}, {0: Outcomes(1.0)})
    assert math.isnan(effect.p) and math.isinf(effect.interval.high)
    assert verdict(effect, effect.p, True) == UNDECIDED


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (runs([0.5, 0.6]), runs([0.48, 0.58]), 0.5),
        (runs([0.7, 0.3, 0.9]), runs([0.6, 0.2, 0.8]), 0.25),  # equal up to rounding
        (runs((), np.ones((1, 3))), runs((), np.zeros((1, 3))), 0.25),
    ],
)
def test_a_few_equal_differences_decide_nothing(first, second, p):
    """They have no spread, which does not mean that the next one would be the same."""
    effect = effect_of(first, second)
    assert effect.p == p and verdict(effect, effect.p, True) == UNDECIDED
    assert effect.interval.low == -math.inf and effect.interval.high == math.inf


def test_a_difference_that_many_items_agree_on_is_decided():
    effect = effect_of(runs((), np.ones((3, 20))), runs((), np.zeros((3, 20))))
    assert effect.p < 1e-5 and verdict(effect, effect.p, True) == BETTER
    assert effect.interval == (1.0, 1.0, 1.0)


def test_holm_multiplies_the_smallest_p_by_their_number_and_keeps_their_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    one, nothing = holm([0.02, math.nan])
    assert one == 0.02 and math.isnan(nothing)


@pytest.mark.parametrize(
    ("sign", "higher", "found"), [(1, True, BETTER), (1, False, WORSE), (-1, True, WORSE)]
)
def test_a_verdict_knows_which_direction_is_better(sign, higher, found):
    effect = effect_of(runs([sign * 1.0, sign * 1.1, sign * 0.9]), runs([0.0, 0.0, 0.0]))
    assert verdict(effect, effect.p, higher) == found
    assert verdict(effect, 0.06, higher) == UNDECIDED
