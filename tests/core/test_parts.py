"""Losses by part of a mixture are those that plain sums over the slots of each part give."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.core.test_losses import ROWS, SLOTS, logits, problem
from unicom_jax.core import flow
from unicom_jax.core.losses import text_terms
from unicom_jax.core.parts import membership, named_parts

PARTS = (("photos", "edit"), ("photos", "visual_qa"), ("web", "visual_qa"))
NUMBERS = np.arange(ROWS * SLOTS).reshape(ROWS, SLOTS) % 4  # 3 is no part of the three


@pytest.mark.parametrize("chunk", [0, 5])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_the_text_loss_of_a_part_is_the_sum_over_its_slots(chunk, z_loss):
    head, hidden, targets, weights = problem()
    log_p = np.asarray(jax.nn.log_softmax(logits(head, hidden)))
    loss = -np.take_along_axis(log_p, np.asarray(targets)[..., None], -1)[..., 0]
    loss += z_loss * np.square(jax.nn.logsumexp(logits(head, hidden), axis=-1))

    @jax.jit
    def terms_of(numbers):
        of = membership(numbers, 3)
        return text_terms(logits, head, hidden, targets, weights, chunk, z_loss, of=of)

    sums, counts = terms_of(jnp.asarray(NUMBERS))["text/parts"]
    for part in range(3):
        own = np.asarray(weights) * (part == NUMBERS)
        np.testing.assert_allclose(sums[part], (own * loss).sum(), rtol=1e-5)
        np.testing.assert_allclose(counts[part], own.sum(), rtol=1e-6)


def test_text_losses_by_part_change_neither_the_loss_nor_its_gradients():
    head, *rest = problem()
    of = membership(jnp.asarray(NUMBERS), 3)

    def loss(head, hidden, of):
        terms = text_terms(logits, head, hidden, *rest[1:], 5, of=of)
        extra = 0.0 if of is None else jnp.sum(terms["text/parts"][0])  # only reported
        return terms["text"][0] + extra - jax.lax.stop_gradient(extra)

    both = [jax.value_and_grad(loss, (0, 1))(head, rest[0], one) for one in (None, of)]
    chex.assert_trees_all_equal(*both)


def test_the_flow_loss_of_a_part_is_the_sum_over_its_draws():
    rng = np.random.default_rng(0)
    prediction, target = rng.standard_normal((2, 4, 1, 3, 5)).astype(np.float32)
    real = rng.random((4, 1, 3)) < 0.7
    numbers = np.array([[0], [2], [-1], [0]])
    of = membership(jnp.asarray(numbers), 3)[:, :, None]
    terms = flow.flow_terms(
        *map(jnp.asarray, (prediction, target, real)), jnp.full((4, 1, 1), 0.5), of
    )
    sums, counts = terms["flow/parts"]
    error = np.square(prediction - target).mean(-1) * real
    np.testing.assert_allclose(sums, [error[[0, 3]].sum(), 0.0, error[1].sum()], rtol=1e-5)
    np.testing.assert_array_equal(counts, [real[[0, 3]].sum(), 0, real[1].sum()])


def test_parts_are_reported_by_task_and_by_source():
    by_part = (jnp.array([1.0, 2.0, 4.0]), jnp.array([10.0, 20.0, 40.0]))
    named = named_parts({"text": (7.0, 70.0), "text/parts": by_part}, PARTS)
    assert {name: tuple(map(float, pair)) for name, pair in named.items()} == {
        "text": (7, 70),
        "text/edit": (1, 10),
        "text/visual_qa": (6, 60),
        "text/source/photos": (3, 30),
        "text/source/web": (4, 40),
    }
    alone = named_parts({"text/parts": by_part}, [("", task) for _, task in PARTS[:1]])
    assert alone.keys() == {"text/edit"}


def test_named_parts_are_in_the_order_of_their_terms():
    """A set's order differs between processes, which then would not share compiled programs."""
    names = [f"term{number}" for number in range(20)]
    terms = {f"{name}/parts": (jnp.ones(1), jnp.ones(1)) for name in names}
    assert list(named_parts(terms, [("", "edit")])) == [f"{name}/edit" for name in names]
