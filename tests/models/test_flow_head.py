"""Velocity heads: shapes, precision, their start at zero, and what they react to."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.weights import trained
from unicom_jax.models.flow_head import make_flow_head

KINDS = ["linear", "mlp", "adaln"]
WIDTH, LATENT = 8, 4
HIDDEN = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, WIDTH)), jnp.float32)
TIME = jnp.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])


run = jax.jit(lambda head, params, hidden, time: head(params, hidden, time), static_argnums=0)


@pytest.mark.parametrize("kind", KINDS)
def test_head_starts_at_zero_velocity(kind):
    head = make_flow_head(kind, WIDTH, LATENT)
    velocity = run(head, jax.jit(head.init)(jax.random.key(0)), HIDDEN, TIME)
    np.testing.assert_array_equal(velocity, np.zeros((2, 3, LATENT)))


@pytest.mark.parametrize("kind", KINDS)
def test_velocity_is_fp32_for_bf16_hidden_states(kind):
    head = make_flow_head(kind, WIDTH, LATENT)
    velocity = run(head, trained(head), HIDDEN.astype(jnp.bfloat16), TIME)
    assert velocity.dtype == jnp.float32
    np.testing.assert_allclose(velocity, run(head, trained(head), HIDDEN, TIME), atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_do_not_mix(kind):
    head = make_flow_head(kind, WIDTH, LATENT)
    params = trained(head)
    whole = run(head, params, HIDDEN, TIME)
    np.testing.assert_allclose(
        run(head, params, HIDDEN[:, 1:2], TIME[:, 1:2]), whole[:, 1:2], atol=1e-6
    )


@pytest.mark.parametrize(("kind", "reacts"), [("linear", False), ("mlp", False), ("adaln", True)])
def test_only_adaln_reads_the_time(kind, reacts):
    head = make_flow_head(kind, WIDTH, LATENT)
    params = trained(head)
    change = jnp.abs(run(head, params, HIDDEN, TIME) - run(head, params, HIDDEN, TIME + 0.1)).max()
    assert (float(change) > 1e-4) == reacts


def test_adaln_takes_one_time_for_all_tokens_of_an_image():
    head = make_flow_head("adaln", WIDTH, LATENT)
    params, time = trained(head), jnp.array([[0.1], [0.7]])
    each = run(head, params, HIDDEN, jnp.broadcast_to(time, (2, 3)))
    np.testing.assert_allclose(run(head, params, HIDDEN, time), each, atol=1e-6)


def test_every_adaln_weight_gets_a_gradient():
    head = make_flow_head("adaln", WIDTH, LATENT, hidden_dim=12, depth=2)
    gradient = jax.jit(jax.grad(lambda p: jnp.square(head(p, HIDDEN, TIME)).sum()))
    grads = gradient(trained(head))
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match="adaln"):
        make_flow_head("linaer", WIDTH, LATENT)
