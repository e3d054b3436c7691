"""KID against its definition, and against the known truth of finite populations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from unicom_jax.evaluation.kernel_distance import kernel_distance

FEATURES, POPULATION = 16, 400


def kernel(x, y):
    return (float(x @ y) / len(x) + 1.0) ** 3


def truth(first, second):
    """The squared discrepancy of two populations: means over all pairs, equal ones included."""

    def mean(a, b):
        return float(np.mean((a @ b.T / FEATURES + 1.0) ** 3))

    return mean(first, first) + mean(second, second) - 2 * mean(first, second)


def estimates(first, second, count, trials, seed=0):
    """Estimates from samples of `count` pairs that are drawn from the populations together."""
    rng = np.random.default_rng(seed)
    for _ in range(trials):
        chosen = rng.integers(0, POPULATION, count)
        yield kernel_distance(first[chosen], second[chosen])


@pytest.fixture(scope="module")
def population():
    rng = np.random.default_rng(1)
    scales = np.linspace(0.3, 1.5, FEATURES)
    return scales * rng.normal(size=(POPULATION, FEATURES))


def copies(population, noise):
    """Copies that are near their originals, as reconstructions are."""
    rng = np.random.default_rng(2)
    return 0.9 * population + noise + 0.2 * rng.normal(size=population.shape)


def test_the_estimate_is_the_mean_over_pairs_of_different_pictures():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 4))
    terms = [
        kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])
        for i, j in itertools.permutations(range(5), 2)
    ]
    assert kernel_distance(x, y).value == pytest.approx(np.mean(terms))


def test_perfect_copies_have_distance_zero(population):
    assert kernel_distance(population[:32], population[:32]) == pytest.approx((0.0, 0.0, 0.0))


@pytest.mark.parametrize("count", [16, 128])
def test_the_estimate_has_no_bias_at_few_or_many_pictures(population, count):
    second = copies(population, noise=0.15)
    values = [found.value for found in estimates(population, second, count, trials=400)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - truth(population, second)) < 3 * error


@pytest.mark.parametrize("noise", [0.0, 0.15, 0.6])
@pytest.mark.parametrize("count", [32, 128])
def test_the_interval_covers_the_truth_as_often_as_it_promises(population, noise, count):
    second = copies(population, noise)
    true = truth(population, second)
    covered = [low <= true <= high for _, low, high in estimates(population, second, count, 300)]
    assert np.mean(covered) > 0.91


def test_the_interval_covers_zero_for_two_draws_of_one_distribution(population):
    shuffled = np.random.default_rng(3).permutation(population)
    covered = [low <= 0 <= high for _, low, high in estimates(population, shuffled, 64, 300)]
    assert np.mean(covered) > 0.93


def test_sets_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="same encoder"):
        kernel_distance(np.zeros((4, 3)), np.zeros((4, 2)))
