"""Objectives of a flow: identities that hold exactly, and cases worked out by hand."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core.flow_steps import SdeStep
from unicom_jax.core.losses import mean
from unicom_jax.rl.flow_objectives import (
    Awm,
    FlowGrpo,
    Nft,
    step_kl,
    velocity_distance,
    window_start,
)
from unicom_jax.rl.policy import Clip, k3

SHAPE = (3, 2, 4, 5)  # pictures, times, tokens, channels
KEYS = jax.random.split(jax.random.key(0), 6)
NEW, OLD, TARGET = (jax.random.normal(key, SHAPE) for key in KEYS[:3])
TIME = jax.random.uniform(KEYS[3], SHAPE[:2], minval=0.05, maxval=0.95)
NOISY = jax.random.normal(KEYS[4], SHAPE)
SHARE = jnp.array([0.0, 0.3, 0.9])


def dims(values):
    return np.asarray(values, np.float64).mean((2, 3))


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_nft_without_its_weights_is_weighted_matching_with_a_proximal_term(beta):
    """L = const + 2 β (2r - 1) <δ, v_old - u> + β² ‖δ‖²."""
    found = Nft(beta=beta, adaptive=False).losses(NEW, OLD, TARGET, TIME, SHARE)
    delta = NEW - OLD
    constant = dims(jnp.square(OLD - TARGET))
    sign = 2 * np.asarray(SHARE)[:, None] - 1
    expected = constant + 2 * beta * sign * dims(delta * (OLD - TARGET))
    expected += beta**2 * dims(jnp.square(delta))
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_nft_is_the_published_loss_on_pictures(beta):
    """c/β [r ‖x̂⁺ - x‖² / w⁺ + (1 - r) ‖x̂⁻ - x‖² / w⁻] with c = 5, in NumPy on the pictures."""
    new, old, target, noisy = (np.asarray(x, np.float64) for x in (NEW, OLD, TARGET, NOISY))
    left = (1 - np.asarray(TIME, np.float64))[..., None, None]
    picture = noisy + left * target
    total = 0.0
    for share, v in (
        (SHARE, beta * new + (1 - beta) * old),
        (1 - SHARE, (1 + beta) * old - beta * new),
    ):
        error = noisy + left * v - picture
        weight = np.maximum(np.abs(error).mean((2, 3)), 1e-5)
        total = total + np.asarray(share)[:, None] * (error**2).mean((2, 3)) / weight
    found = Nft(beta=beta).losses(NEW, OLD, TARGET, TIME, SHARE)
    np.testing.assert_allclose(found, 5 / beta * total, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_nft_on_its_own_policy_has_the_gradient_of_advantage_weighted_matching(beta):
    """A (1-t)²/w ∇‖v - u‖² at v = v_old, whatever β."""
    advantages = jnp.array([-4.0, 1.0, 3.0])
    objective = Nft(beta=beta)

    def nft(v):
        return objective.losses(v, OLD, TARGET, TIME, objective.share(advantages)).sum()

    def matching(v):
        left = 1 - TIME
        weight = left * jnp.abs(OLD - TARGET).mean((2, 3))
        return (advantages[:, None] * left**2 / weight * jnp.square(v - TARGET).mean((2, 3))).sum()

    found, expected = jax.grad(nft)(OLD), jax.grad(matching)(OLD)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("adaptive", [True, False])
def test_nft_has_no_gradient_on_its_own_policy_where_a_picture_is_average(adaptive):
    def loss(v):
        half = jnp.full(3, 0.5)
        return Nft(adaptive=adaptive).losses(v, OLD, TARGET, TIME, half).sum()

    np.testing.assert_allclose(jax.grad(loss)(OLD), 0.0, atol=1e-6)


def test_nft_turns_advantages_into_shares_within_0_and_1():
    found = Nft().share(jnp.array([-9.0, -5.0, 0.0, 2.5, 5.0, 9.0]))
    np.testing.assert_allclose(found, [0, 0, 0.5, 0.75, 1, 1])


def test_no_gradient_reaches_the_old_policy():
    for objective in (Nft(), Awm()):

        def loss(old, objective=objective):
            terms = objective.terms(NEW, old, TARGET, TIME, jnp.array([1.0, -1.0, 2.0]), old)
            return mean(terms["policy"]) + mean(terms["kl"])

        np.testing.assert_array_equal(jax.grad(loss)(OLD), 0.0)


def test_awm_by_hand():
    found = Awm().log_probs(NEW, TARGET, TIME)
    loss = dims(jnp.square(NEW - TARGET))
    time = np.asarray(TIME, np.float64)
    expected = -(1 - time) / 0.25 * ((loss + 1e-10) ** 0.25 - (1e-10) ** 0.25)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_awm_on_its_own_policy_has_the_gradient_of_weighted_matching():
    """A (1-t) (l + 1e-10)^(p-1) ∇l, A scaled to ±1."""
    advantages = jnp.array([-4.0, 1.0, 9.0])

    def awm(v):
        return mean(Awm().terms(v, OLD, TARGET, TIME, advantages, OLD)["policy"])

    loss = jnp.square(OLD - TARGET).mean((2, 3))
    scale = jnp.clip(advantages, -5, 5)[:, None] / 5 * (1 - TIME) * (loss + 1e-10) ** -0.75
    each = 2 * (OLD - TARGET) / (SHAPE[2] * SHAPE[3])
    expected = scale[..., None, None] * each / (SHAPE[0] * SHAPE[1])
    np.testing.assert_allclose(jax.grad(awm)(OLD), expected, rtol=2e-4, atol=1e-7)


def test_flow_grpo_by_hand():
    old = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5]]))
    new = old + jnp.log(jnp.array([[1.5, 0.5], [1.0, 1.5]]))
    terms = FlowGrpo(Clip(0.2, 0.2)).terms(new, old, jnp.array([1.0, -1.0]), jnp.ones((2, 2)))
    # min(1.5, 1.2), min(.5, .8), min(-1, -1), min(-1.5, -1.2)
    assert float(mean(terms["policy"])) == pytest.approx(-(1.2 + 0.5 - 1.0 - 1.5) / 4)
    assert float(mean(terms["clip_share"])) == pytest.approx(1 / 4)
    assert float(mean(terms["kl"])) == 1.0


def test_the_kl_of_a_step_is_that_of_its_gaussians_and_the_mean_of_k3():
    """Exact in one dimension, where a step's log-probability is a whole one."""
    times, step = (jnp.asarray(0.4), jnp.asarray(0.5)), SdeStep(0.7)
    z = jnp.full((40_000, 1), 0.3)
    new, old = (lambda x, t: 0.5 * x + 1.0), (lambda x, t: 0.2 * x + 0.6)
    mean_new, deviation = step.moments(new, z, *times)
    mean_old, _ = step.moments(old, z, *times)
    kl = step_kl(mean_new, mean_old, deviation)
    shift = float(mean_new[0, 0] - mean_old[0, 0]) / float(deviation)
    np.testing.assert_allclose(kl, 0.5 * shift**2, rtol=1e-5)
    after, log_prob = step(new, z, *times, jax.random.key(1))
    distances = np.asarray(k3(log_prob, step.log_prob(old, z, after, *times)))
    error = distances.std() / np.sqrt(len(distances))
    assert abs(distances.mean() - float(kl[0])) < 5 * error


@pytest.mark.parametrize("objective", [Nft(), Awm()])
def test_the_distance_from_the_first_weights_is_bounded_where_data_are_predicted(objective):
    """(x̂ - x̂_ref) / max(1 - t, floor), by hand; without a floor it is that of velocities."""
    clean, before = NEW, OLD  # predictions of the data
    time = TIME.at[0, 0].set(1 - 1e-4)
    left = np.asarray(1.0 - time)[..., None, None]
    now, then = ((x - NOISY) / left for x in (clean, before))
    kl = partial(objective.terms, now, then, TARGET, time, jnp.ones(3), then)
    difference = np.asarray(clean - before, np.float64)
    bounded = np.square(difference / np.maximum(left, 0.5)).mean()
    assert float(mean(kl(floor=0.5)["kl"])) == pytest.approx(bounded, rel=1e-3)
    free = np.square(difference / left).mean()
    assert float(mean(kl()["kl"])) == pytest.approx(free, rel=1e-3)
    assert free > 1000 * bounded
    assert float(mean(velocity_distance(now, then, time))) == float(mean(kl()["kl"]))


def test_a_window_moves_after_the_updates_it_is_held_and_begins_again():
    """7 steps, 3 of them stochastic: it may begin at 0, 1, 2 or 3, as the last step is Euler's."""
    place = partial(window_start, steps=7, length=3, held=2)
    assert [int(place(update)) for update in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0]
    wide = [int(window_start(update, 7, 3, stride=2, held=1)) for update in range(4)]
    assert wide == [0, 2, 0, 2]
    for steps, length in ((4, 4), (4, 0)):
        with pytest.raises(ValueError, match="does not fit"):
            window_start(0, steps, length)
    with pytest.raises(ValueError, match="at least 1"):
        window_start(0, 4, 2, held=0)
