"""Fits of scaling laws, on losses whose law is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from unicom_jax.sweeps.laws import (
    PowerLaw,
    Run,
    Surface,
    bootstrap,
    fit_power,
    fit_surface,
    iso_flop,
    level_seeds,
)

TRUE = Surface(floor=1.5, size=8.0, data=60.0, alpha=0.3, beta=0.4)
BUDGETS = (1e12, 3e12, 1e13, 3e13)


def best_size(budget, law=TRUE):
    """N that minimises L(N, C / 6N)."""
    ratio = law.alpha * law.size / (law.beta * law.data)
    return (ratio * (budget / 6) ** law.beta) ** (1 / (law.alpha + law.beta))


def grid(noise=0.0, seeds=1, offsets=(-1.0, -0.5, 0.0, 0.5, 1.0), budgets=BUDGETS):
    """Runs around the best size of each budget, `offsets` in log N."""
    rng, runs = np.random.default_rng(0), []
    for budget in budgets:
        for offset in offsets:
            weights = best_size(budget) * np.exp(offset)
            tokens = budget / 6 / weights
            for _ in range(seeds):
                loss = TRUE(weights, tokens) * np.exp(noise * rng.standard_normal())
                runs.append(Run(budget, weights, tokens, loss))
    return runs


def test_vertices_and_exponents_of_exact_losses_are_found():
    found = iso_flop(grid())
    assert found.without == () and len(found.optima) == len(BUDGETS)
    for one in found.optima:
        assert one.weights == pytest.approx(best_size(one.budget), rel=0.05)
        assert one.loss == pytest.approx(TRUE(one.weights, one.tokens), rel=1e-3)
    assert found.a == pytest.approx(0.4 / 0.7, abs=1e-6)
    assert found.b == pytest.approx(0.3 / 0.7, abs=1e-6)


def test_a_budget_whose_best_size_was_not_tried_is_named_and_left_out():
    edge = grid(offsets=(0.5, 1.0, 1.5), budgets=(1e14,))
    found = iso_flop([*grid(), *edge])
    assert found.without == (1e14,) and len(found.optima) == len(BUDGETS)


def test_two_sizes_make_no_parabola():
    with pytest.raises(ValueError, match=r"budget 1e\+12 has 2 sizes; a parabola needs at least"):
        iso_flop(grid(offsets=(0.0, 1.0)))


def test_the_parabola_of_a_budget_has_its_optimum_at_its_vertex():
    found = iso_flop(grid())
    for one in found.optima:
        parabola = found.parabolas[one.budget]
        assert parabola(one.weights) == pytest.approx(one.loss)
        assert min(parabola(one.weights * factor) for factor in (0.9, 1.1)) > one.loss


def test_seeds_whose_losses_differ_by_a_factor_agree_after_levelling():
    plain = {"a": 2.0, "b": 3.0, "c": 4.0}
    losses = {(v, s): loss * factor for v, loss in plain.items() for s, factor in ((0, 1), (1, 4))}
    del losses["c", 1]
    found = level_seeds(losses)
    assert found == pytest.approx({key: 2 * plain[key[0]] for key in losses})


def test_seeds_without_a_common_variant_are_refused():
    with pytest.raises(ValueError, match="no variant was trained with all seeds"):
        level_seeds({("a", 0): 1.0, ("b", 1): 1.0})


def test_the_surface_of_exact_losses_is_found_and_predicts_a_larger_run():
    found = fit_surface(grid())
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(TRUE), rel=0.02)
    assert found.a == pytest.approx(0.4 / 0.7, abs=0.01)
    weights = best_size(1.2e14)
    tokens = 1.2e14 / 6 / weights
    assert found(weights, tokens) == pytest.approx(TRUE(weights, tokens), rel=1e-3)


def test_the_surface_does_not_follow_a_run_that_diverged():
    runs = grid()
    runs[7] = dataclasses.replace(runs[7], loss=3 * runs[7].loss)
    assert fit_surface(runs)(1e6, 1e8) == pytest.approx(TRUE(1e6, 1e8), rel=0.01)


def test_a_surface_needs_more_runs_than_parameters():
    with pytest.raises(ValueError, match="5 runs do not determine five parameters"):
        fit_surface(grid(budgets=BUDGETS[:1]))


def test_the_interval_of_an_exponent_contains_it_and_widens_with_noise():
    quiet, loud = (
        bootstrap(grid(noise, seeds=3), lambda runs: iso_flop(runs).a, resamples=200)
        for noise in (5e-4, 3e-3)
    )
    assert quiet.low < 0.4 / 0.7 < quiet.high
    assert loud.high - loud.low > 2 * (quiet.high - quiet.low)


def test_runs_that_determine_nothing_are_refused():
    def nothing(runs):
        raise ValueError

    with pytest.raises(ValueError, match="only 0 of 20 draws of runs have an estimate"):
        bootstrap(grid(), nothing, resamples=20)


def test_the_power_law_of_exact_points_is_found_with_its_interval():
    law = PowerLaw(floor=0.4, factor=0.2, exponent=0.7)
    points = [(x, law(x)) for x in (0.1, 0.25, 0.5, 0.9)]
    assert fit_power(points) == pytest.approx(law, rel=1e-3)
    noisy = [(x, y * factor) for x, y in points for factor in (0.99, 1.0, 1.01)]
    found = bootstrap(
        noisy, lambda drawn: fit_power(drawn).exponent, within=lambda point: point[0], resamples=40
    )
    assert found.low < 0.7 < found.high


def test_three_values_determine_no_power_law():
    with pytest.raises(ValueError, match="3 values of x do not determine a power law"):
        fit_power([(x, 1.0) for x in (1.0, 2.0, 3.0, 3.0)])
