"""Stochastic steps of the flow: what they are, their log-probability, and their trajectories."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core.flow import integrate, integrate_window, time_grid
from unicom_jax.core.flow_steps import EulerStep, HeunStep, SdeStep

MEAN, SPREAD = 1.5, 0.5  # of the data, a Gaussian: its flow is known


def variance(t):
    return t**2 * SPREAD**2 + (1 - t) ** 2


def velocity(z, t):
    """E[z_1 - ε | z_t] of the Gaussian flow."""
    return MEAN + (t * SPREAD**2 - (1 - t)) / variance(t) * (z - t * MEAN)


def test_the_drift_corrects_by_the_score():
    z, t = np.linspace(-2.0, 2.0, 5), 0.3
    score = -(z - t * MEAN) / variance(t)
    np.testing.assert_allclose(-(z - t * velocity(z, t)) / (1 - t), score, rtol=1e-12)
    step, t1 = SdeStep(0.7), 0.35
    mean, deviation = step.moments(velocity, jnp.asarray(z), jnp.asarray(t), jnp.asarray(t1))
    spread = 0.7 * np.sqrt((1 - t) / t)
    drift = velocity(z, t) + spread**2 / 2 * score
    np.testing.assert_allclose(mean, z + drift * (t1 - t), rtol=1e-5)
    np.testing.assert_allclose(deviation, spread * np.sqrt(t1 - t), rtol=1e-5)


class WithAndWithoutJit(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_a_step_reports_the_gaussian_log_density_of_where_it_went(self):
        z, step = jax.random.normal(jax.random.key(0), (3, 4, 2)), SdeStep(0.9)
        times = jnp.asarray(0.2), jnp.asarray(0.4)
        after, log_prob = self.variant(partial(step, velocity))(z, *times, jax.random.key(1))
        mean, deviation = (np.asarray(x, np.float64) for x in step.moments(velocity, z, *times))
        error = (np.asarray(after, np.float64) - mean) / deviation
        logs = -0.5 * error**2 - np.log(deviation) - 0.5 * np.log(2 * np.pi)
        np.testing.assert_allclose(log_prob, logs.reshape(3, -1).mean(-1), rtol=1e-5)
        again = self.variant(partial(step.log_prob, velocity))(z, after, *times)
        np.testing.assert_allclose(again, log_prob, rtol=1e-6)


def test_the_log_probability_has_the_gradient_of_the_policy():
    """d log p / dv pulls the mean towards where the step went."""
    z, times = jnp.zeros((1, 1)), (jnp.asarray(0.5), jnp.asarray(0.6))
    after = jnp.ones((1, 1))

    def log_prob(speed):
        return SdeStep(0.7).log_prob(lambda z, t: z + speed, z, after, *times)[0]

    assert jax.grad(log_prob)(0.0) > 0


def test_a_chain_has_the_moments_of_its_recursion():
    steps, count = 6, 40_000
    step, times = SdeStep(0.7), np.asarray(time_grid(steps), np.float64)
    mean, var = 0.0, 1.0
    for t0, t1 in zip(times[:-1], times[1:], strict=True):
        origin, unit = (
            float(step.moments(velocity, jnp.asarray(z), jnp.asarray(t0), jnp.asarray(t1))[0])
            for z in (0.0, 1.0)
        )
        deviation = 0.7 * np.sqrt((1 - t0) / (t0 or t1)) * np.sqrt(t1 - t0)
        mean, var = origin + (unit - origin) * mean, (unit - origin) ** 2 * var + deviation**2
    noise = jax.random.normal(jax.random.key(2), (count, 1))
    final = np.asarray(integrate(velocity, noise, steps, step, key=jax.random.key(3)))
    assert final.mean() == pytest.approx(mean, abs=5 * np.sqrt(var / count))
    assert final.var() == pytest.approx(var, rel=5 * np.sqrt(2 / count))


@pytest.mark.optimized
def test_a_trajectory_holds_every_state_time_and_log_probability():
    noise, step = jax.random.normal(jax.random.key(4), (2, 3)), SdeStep(0.7)
    final, passed = integrate(velocity, noise, 4, step, key=jax.random.key(5), trajectory=True)
    assert passed.states.shape == (5, 2, 3) and passed.log_probs.shape == (4, 2)
    np.testing.assert_array_equal(passed.states[0], noise)
    np.testing.assert_array_equal(passed.states[-1], final)
    for i in range(4):
        again = step.log_prob(velocity, *passed.states[i : i + 2], *passed.times[i : i + 2])
        np.testing.assert_allclose(passed.log_probs[i], again, rtol=1e-5)
    plain = integrate(velocity, noise, 4, step, key=jax.random.key(5))
    np.testing.assert_array_equal(plain, final)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_steps_of_the_ode_have_no_log_probability(sampler):
    noise = jnp.ones((2, 3))
    final, passed = integrate(velocity, noise, 4, sampler, trajectory=True)
    assert passed.log_probs is None
    np.testing.assert_array_equal(passed.states[-1], final)


def test_a_row_draws_its_own_noise_by_its_own_key():
    noise, keys = jnp.zeros((3, 2)), jax.random.split(jax.random.key(6), 3)
    together = integrate(velocity, noise, 3, SdeStep(), key=keys)
    alone = integrate(velocity, noise[1:2], 3, SdeStep(), key=keys[1:2])
    np.testing.assert_array_equal(together[1:2], alone)


def test_noise_without_a_key_and_a_level_of_zero_are_refused():
    with pytest.raises(ValueError, match="give integrate a key"):
        integrate(velocity, jnp.zeros((1, 1)), 2, SdeStep())
    with pytest.raises(ValueError, match="has no log-probability"):
        SdeStep(0.0)
    with pytest.raises(ValueError, match="beyond t = 1, where an SDE step has no density"):
        integrate(velocity, jnp.zeros((1, 1)), 2, SdeStep(), grid="released", key=jax.random.key(0))


def test_the_moments_of_a_chain_converge_at_first_order():
    """From t = .05, where the noise level is finite, and the exact marginal there. The mean, a
    straight line, has no error.
    """

    def final(steps):
        step, times = SdeStep(0.7), time_grid(steps, start=0.05)

        @jax.jit
        @jax.vmap
        def moments(t0, t1):
            return step.moments(velocity, jnp.array([0.0, 1.0]), t0, t1)

        means, deviations = (np.asarray(x, np.float64) for x in moments(times[:-1], times[1:]))
        mean, var = 0.05 * MEAN, variance(0.05)
        for (origin, unit), deviation in zip(means, deviations, strict=True):
            mean, var = origin + (unit - origin) * mean, (unit - origin) ** 2 * var + deviation**2
        return mean, abs(var - SPREAD**2)

    (mean, coarse), (_, fine) = final(80), final(160)
    assert mean == pytest.approx(MEAN, rel=1e-4)
    assert coarse / fine == pytest.approx(2.0, abs=0.2)


def test_a_window_of_sde_steps_stands_among_steps_of_the_ode():
    noise, step = jax.random.normal(jax.random.key(7), (2, 3)), SdeStep(0.7)
    run = jax.jit(lambda first: integrate_window(velocity, noise, 5, step, first, 2, key=key))
    key, times = jax.random.key(8), time_grid(5)
    for first in (0, 2, 3):
        final, passed = run(first)
        np.testing.assert_array_equal(passed.times, times[first : first + 3])
        z = noise
        for i in range(5):
            if first <= i < first + 2:
                np.testing.assert_allclose(passed.states[i - first], z, atol=1e-5)
                log_prob = step.log_prob(
                    velocity, z, passed.states[i - first + 1], *times[i : i + 2]
                )
                np.testing.assert_allclose(passed.log_probs[i - first], log_prob, atol=1e-3)
                z = passed.states[i - first + 1]
            else:
                z = EulerStep()(velocity, z, *times[i : i + 2])[0]
        np.testing.assert_allclose(final, z, atol=1e-5)
    assert run._cache_size() == 1
    everywhere, _ = integrate_window(velocity, noise, 4, step, 0, 4, key=key)
    alike = integrate(velocity, noise, 4, step, key=key)
    np.testing.assert_allclose(everywhere, alike, rtol=1e-5)
    with pytest.raises(ValueError, match="does not fit"):
        integrate_window(velocity, noise, 3, step, 0, 4, key=key)


@pytest.mark.parametrize("step", [EulerStep(), HeunStep()])
def test_a_log_probability_on_a_step_of_the_ode_is_refused(step):
    z, times = jnp.zeros((1, 1)), (jnp.asarray(0.2), jnp.asarray(0.4))
    with pytest.raises(ValueError, match="step of an ODE and has no log-probability"):
        step.log_prob(velocity, z, z, *times)
