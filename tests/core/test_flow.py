"""The rectified flow against closed forms."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core import flow

MEAN, STD = 1.5, 0.4


def gaussian_velocity(z, t):
    """E[z_1 - ε | z_t] for scalar data N(MEAN, STD²): the closed form of linear regression."""
    variance = (t * STD) ** 2 + (1 - t) ** 2
    return MEAN + (t * STD**2 - (1 - t)) / variance * (z - t * MEAN)


def gaussian_end(noise):
    """The exact flow keeps quantiles, so an affine map carries N(0, 1) onto N(MEAN, STD²)."""
    return MEAN + STD * noise


def sampler_error(sampler, steps, shift=1.0):
    noise = jnp.linspace(-2.0, 2.0, 9)
    end = flow.integrate(gaussian_velocity, noise, steps, sampler, shift)
    return float(jnp.abs(end - gaussian_end(noise)).max())


def test_path_starts_at_noise_and_ends_at_data():
    data, noise = jnp.full((2, 3, 4), 5.0), jnp.full((2, 3, 4), -1.0)
    path = flow.interpolate(data, noise, jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(path[0], noise[0])
    np.testing.assert_array_equal(path[1], data[1])


def test_velocity_is_the_time_derivative_of_the_path():
    data, noise = jax.random.normal(jax.random.key(0), (2, 3, 4))
    _, derivative = jax.jvp(
        lambda t: flow.interpolate(data, noise, t), (jnp.float32(0.3),), (jnp.float32(1),)
    )
    np.testing.assert_allclose(derivative, flow.velocity(data, noise), atol=1e-6)


class WithAndWithoutJit(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_data_and_velocity_convert_into_each_other(self):
        data, noise = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
        time = jnp.array([0.0, 0.5, 0.9])
        noisy = self.variant(flow.interpolate)(data, noise, time)
        speed = self.variant(partial(flow.data_to_velocity, floor=0.05))(data, noisy, time)
        np.testing.assert_allclose(speed, flow.velocity(data, noise), atol=1e-5)
        back = self.variant(flow.velocity_to_data)(speed, noisy, time)
        np.testing.assert_allclose(back, data, atol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_guidance_applies_within_its_interval_only(self):
        cond, uncond = jnp.full((3, 2), 2.0), jnp.full((3, 2), 1.0)
        guide = self.variant(partial(flow.guide, interval=(0.2, 0.8)))
        guided = guide(cond, uncond, 3.0, jnp.array([0.1, 0.5, 0.9]))
        np.testing.assert_allclose(guided[:, 0], [2.0, 4.0, 2.0])


def test_floor_bounds_the_velocity_at_the_end_of_the_path():
    speed = flow.data_to_velocity(jnp.ones(3), jnp.zeros(3), jnp.float32(1.0), floor=0.05)
    np.testing.assert_allclose(speed, 20.0, rtol=1e-6)


def test_uniform_time_has_the_moments_of_the_unit_interval():
    time = flow.sample_time(jax.random.key(0), (20_000,))
    assert float(time.min()) >= 0.0 and float(time.max()) < 1.0
    assert float(time.mean()) == pytest.approx(1 / 2, abs=0.01)
    assert float(time.var()) == pytest.approx(1 / 12, abs=0.005)


def test_logits_of_logit_normal_time_are_normal():
    time = flow.sample_time(jax.random.key(0), (20_000,), "logit_normal", mean=-0.8, std=0.5)
    logits = jnp.log(time) - jnp.log1p(-time)
    assert float(logits.mean()) == pytest.approx(-0.8, abs=0.02)
    assert float(logits.std()) == pytest.approx(0.5, abs=0.02)


def test_sampled_time_is_shifted():
    plain = flow.sample_time(jax.random.key(0), (100,))
    shifted = flow.sample_time(jax.random.key(0), (100,), shift=4.0)
    np.testing.assert_allclose(shifted, flow.shift_time(plain, 4.0), rtol=1e-6)


@pytest.mark.parametrize("shift", [0.5, 1.0, 4.0])
def test_shift_is_monotone_and_keeps_the_ends(shift):
    times = flow.shift_time(jnp.linspace(0.0, 1.0, 101), shift)
    assert bool((jnp.diff(times) > 0).all())
    assert (float(times[0]), float(times[-1])) == (0.0, 1.0)


def test_shift_above_one_moves_times_towards_noise():
    assert float(flow.shift_time(jnp.float32(0.5), 4.0)) == pytest.approx(0.2)


def test_paper_latents_need_a_shift_of_four():
    assert flow.latent_shift(1024, 64) == 4.0


def test_each_picture_is_shifted_by_its_own_number_of_tokens():
    """Pictures of 16 and 1024 tokens of 64 channels, and an absent one."""
    shifts = flow.latent_shift(jnp.array([[16, 1024, 0]]), 64)
    np.testing.assert_allclose(shifts[0, :2], [0.5, 4.0], rtol=1e-6)
    time = flow.sample_time(jax.random.key(0), (2, 3), shift=shifts)
    plain = flow.sample_time(jax.random.key(0), (2, 3))
    np.testing.assert_allclose(time, plain / (plain + shifts * (1 - plain)), rtol=1e-6)
    assert np.isfinite(time).all()


def test_loss_averages_channels_and_weighs_tokens():
    target = jnp.zeros((2, 2))
    prediction = jnp.array([[1.0, 3.0], [2.0, 2.0]])
    total, count = flow.flow_loss(prediction, target, jnp.array([0.5, 2.0]))
    assert (float(total), float(count)) == (0.5 * 5 + 2 * 4, 2.5)


def test_parts_of_the_loss_by_time_add_up_to_it_and_hold_the_tokens_of_their_times():
    rng = np.random.default_rng(0)
    prediction, target = rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 5, 3))
    time = np.array([[0.0, 0.1, 0.3, 0.49, 0.5], [0.74, 0.99, 1.0, 0.2, 0.8]])
    weights = np.array([[1, 1, 1, 2, 1], [1, 1, 1, 0, 1]], np.float32)
    terms = flow.flow_terms(jnp.asarray(prediction), jnp.asarray(target), weights, time)
    total, count = terms.pop("flow")
    assert [float(term[1]) for term in terms.values()] == [2, 3, 2, 3]
    assert list(terms) == ["flow/t0.00", "flow/t0.25", "flow/t0.50", "flow/t0.75"]
    np.testing.assert_allclose(sum(term[0] for term in terms.values()), total, rtol=1e-6)
    second = np.square(prediction - target).mean(-1)[0, 2:4] @ [1, 2]
    np.testing.assert_allclose(terms["flow/t0.25"][0], second, rtol=1e-6)


def test_token_of_weight_zero_leaves_loss_and_gradient_finite():
    prediction = jnp.array([[1.0], [jnp.nan]])
    grad = jax.grad(lambda p: flow.flow_loss(p, jnp.zeros((2, 1)), jnp.array([1.0, 0.0]))[0])(
        prediction
    )
    np.testing.assert_array_equal(grad, [[2.0], [0.0]])


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sampler_converges_at_its_order(sampler, order, shift):
    with jax.enable_x64(True):
        errors = [sampler_error(sampler, steps, shift) for steps in (32, 64)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_heun_never_asks_for_the_velocity_at_the_end():
    def undefined_at_one(z, t):
        return jnp.where(t < 1.0, gaussian_velocity(z, t), jnp.nan)

    assert bool(jnp.isfinite(flow.integrate(undefined_at_one, jnp.zeros(3), 4, "heun")).all())


def test_velocity_is_traced_once_however_many_steps():
    velocity = chex.assert_max_traces(gaussian_velocity, n=1)
    for steps in (2, 50):
        chex.clear_trace_counter()
        jax.jit(lambda z: flow.integrate(velocity, z, steps)).lower(jnp.zeros(3))  # noqa: B023


def test_guidance_of_scale_one_is_the_conditional_velocity():
    cond, uncond = jax.random.normal(jax.random.key(0), (2, 2, 3, 4))
    np.testing.assert_array_equal(flow.guide(cond, uncond, 1.0, jnp.float32(0.5)), cond)


def test_guidance_of_scale_zero_is_the_unconditional_velocity():
    cond, uncond = jax.random.normal(jax.random.key(0), (2, 2, 3, 4))
    np.testing.assert_allclose(flow.guide(cond, uncond, 0.0, jnp.float32(0.5)), uncond, atol=1e-6)


def test_guidance_scale_can_differ_between_images():
    cond, uncond = jnp.full((2, 2), 2.0), jnp.full((2, 2), 1.0)
    guided = flow.guide(cond, uncond, jnp.array([1.0, 5.0]), jnp.float32(0.5))
    np.testing.assert_allclose(guided[:, 0], [2.0, 6.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flow.sample_time(jax.random.key(0), (1,), "normal"), "logit_normal"),
        (lambda: flow.sample_time(jax.random.key(0), (1,), mean=1.0), "logit_normal"),
        (lambda: flow.integrate(gaussian_velocity, jnp.zeros(1), 4, "rk4"), "euler"),
        (lambda: flow.time_grid(0), "at least 1"),
        (lambda: flow.time_grid(4, start=1.0), "before 1"),
        (lambda: flow.time_grid(4, kind="odd"), "choose one of"),
        (lambda: flow.time_grid(1, kind="released"), "needs 2 nodes"),
    ],
)
def test_wrong_option_names_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- time grids and later starts ----------------------------------------------------------


def test_cheers_schedule_is_a_shift():
    time, alpha = jnp.linspace(0.0, 1.0, 9), 0.5
    theirs = alpha * time / (1 + (alpha - 1) * time)
    np.testing.assert_allclose(flow.shift_time(time, 1 / alpha), theirs, rtol=1e-6)


def test_the_released_grid_has_one_step_beyond_the_end():
    times = flow.time_grid(80, 2.0, kind="released")
    assert len(times) == 81
    np.testing.assert_allclose(times[:-1], flow.shift_time(jnp.linspace(0.0, 1.0, 80), 2.0))
    assert times[-2] == 1.0 and float(times[-1]) == pytest.approx(1 + 1 / 80)
    edit = flow.time_grid(80, 2.0, start=0.1, kind="released")
    assert len(edit) == 73  # 72 nodes from .1, shifted to .053
    assert float(edit[0]) == pytest.approx(0.1 / 1.9)
    assert edit[-2] == 1.0 and float(edit[-1]) == pytest.approx(1 + 1 / 72)


def test_an_even_grid_begins_at_the_shifted_start_and_ends_at_the_data():
    times = flow.time_grid(9, 2.0, start=0.1)
    assert len(times) == 10 and float(times[0]) == pytest.approx(0.1 / 1.9) and times[-1] == 1.0


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_that_begins_at_a_state_of_its_own_arrives_at_the_data(shift):
    """Of a constant velocity every step is exact, so a wrong mixing time would show at the end."""
    data, noise = jax.random.normal(jax.random.key(0), (2, 5))
    state = flow.begin_from(data, noise, 0.1, shift)
    end = flow.integrate(lambda z, t: data - noise, state, 4, shift=shift, start=0.1)
    np.testing.assert_allclose(end, data, atol=1e-6)
    wrong = flow.interpolate(data, noise, jnp.float32(0.1))
    if shift != 1.0:
        missed = flow.integrate(lambda z, t: data - noise, wrong, 4, shift=shift, start=0.1)
        assert jnp.abs(missed - data).max() > 0.05


def test_the_released_grid_asks_for_the_velocity_at_the_end():
    asked = []

    def field(z, time):
        jax.debug.callback(lambda t: asked.append(float(t)), time, ordered=True)
        return jnp.ones_like(z)

    end = flow.integrate(field, jnp.zeros(1), 4, grid="released")
    jax.effects_barrier()
    assert asked[-1] == 1.0 and len(asked) == 4
    np.testing.assert_allclose(end, 1.25)
