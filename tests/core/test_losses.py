"""The text loss: what it is worth, what it skips, and what it never holds at once."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core.losses import soft_cap, text_terms

ROWS, SLOTS, WIDTH, VOCABULARY = 2, 12, 8, 20


def logits(head, hidden):
    return jnp.matmul(hidden, head, preferred_element_type=jnp.float32)


def problem(dtype=np.float32):
    """(head, hidden, targets, weights) with unequal weights, and more to predict in one row."""
    rng = np.random.default_rng(0)
    head = rng.standard_normal((WIDTH, VOCABULARY)).astype(np.float32)
    hidden = jnp.asarray(rng.standard_normal((ROWS, SLOTS, WIDTH)), dtype)
    targets = rng.integers(0, VOCABULARY, (ROWS, SLOTS))
    weights = rng.uniform(0.5, 2.0, (ROWS, SLOTS)) * (rng.random((ROWS, SLOTS)) < [[0.6], [0.3]])
    return head, hidden, jnp.asarray(targets), jnp.asarray(weights, jnp.float32)


def plain_loss(head, hidden, targets, weights):
    log_p = jax.nn.log_softmax(logits(head, hidden))
    nll = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    return jnp.sum(nll * weights) / jnp.sum(weights)


def our_loss(head, hidden, targets, weights, chunk=0):
    total, count = text_terms(logits, head, hidden, targets, weights, chunk)["text"]
    return total / count


@pytest.mark.parametrize("chunk", [0, 1, 5, 12, 100])
def test_value_and_gradients_are_those_of_the_plain_loss_whatever_the_chunk(chunk):
    head, hidden, *rest = problem()
    expected, expected_grads = jax.value_and_grad(plain_loss, (0, 1))(head, hidden, *rest)
    loss, grads = jax.value_and_grad(our_loss, (0, 1))(head, hidden, *rest, chunk)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for ours, plain in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-6)


@pytest.mark.parametrize("chunk", [0, 5])
def test_z_loss_adds_the_square_of_log_z_in_value_and_gradient(chunk):
    head, hidden, targets, weights = problem()

    def plain(head, hidden):
        log_z = jax.nn.logsumexp(logits(head, hidden), axis=-1)
        extra = 0.3 * jnp.sum(jnp.square(log_z) * weights) / jnp.sum(weights)
        return plain_loss(head, hidden, targets, weights) + extra

    def ours(head, hidden):
        terms = text_terms(logits, head, hidden, targets, weights, chunk, z_loss=0.3)
        total, count = terms["text"]
        return total / count, terms

    expected, expected_grads = jax.value_and_grad(plain, (0, 1))(head, hidden)
    (loss, terms), grads = jax.value_and_grad(ours, (0, 1), has_aux=True)(head, hidden)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for left, right in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
    # What is left of the loss without its share of log² Z is the cross-entropy.
    bare = terms["text"][0] - 0.3 * terms["text_z"][0]
    np.testing.assert_allclose(bare / terms["text"][1], our_loss(*problem()), rtol=1e-5)


def test_without_z_loss_there_is_no_term_of_it():
    assert set(text_terms(logits, *problem(), 5)) == {"text", "text_accuracy"}


def test_a_soft_cap_bounds_logits_keeps_their_order_and_is_off_at_zero():
    scores = jnp.linspace(-100.0, 100.0, 9)
    capped = soft_cap(scores, 30.0)
    np.testing.assert_allclose(capped, 30 * np.tanh(np.linspace(-100, 100, 9) / 30), rtol=1e-6)
    assert np.all(np.diff(capped) > 0) and np.abs(capped).max() < 30.0
    assert soft_cap(scores, 0.0) is scores


def test_accuracy_is_the_weighted_share_of_highest_logits():
    head, hidden, targets, weights = problem()
    best = jnp.argmax(logits(head, hidden), -1)
    targets = targets.at[0].set(best[0])
    hits, count = text_terms(logits, head, hidden, targets, weights, 5)["text_accuracy"]
    np.testing.assert_allclose(hits, jnp.sum(weights * (best == targets)), rtol=1e-6)
    np.testing.assert_allclose(count, jnp.sum(weights), rtol=1e-6)


def test_rows_that_predict_nothing_have_no_loss_and_no_gradient():
    head, hidden, targets, weights = problem()

    def total(head, hidden):
        return text_terms(logits, head, hidden, targets, 0 * weights, 4)["text"][0]

    loss, grads = jax.value_and_grad(total, (0, 1))(head, hidden)
    assert loss == 0 and all(not jnp.any(grad) for grad in grads)


def test_bf16_states_get_an_fp32_loss_and_gradients_of_their_own_types():
    head, hidden, *rest = problem(jnp.bfloat16)
    wide = plain_loss(head, hidden.astype(jnp.float32), *rest)

    def cast_logits(head, hidden):
        return logits(head.astype(hidden.dtype), hidden)

    def loss(head, hidden):
        total, count = text_terms(cast_logits, head, hidden, *rest, 4)["text"]
        return total / count

    value, (head_gradient, hidden_gradient) = jax.value_and_grad(loss, (0, 1))(head, hidden)
    assert value.dtype == jnp.float32 and float(value) == pytest.approx(float(wide), rel=1e-2)
    assert head_gradient.dtype == jnp.float32 and hidden_gradient.dtype == jnp.bfloat16


@pytest.mark.parametrize("predicted", [[0, 0], [3, 1], [4, 4], [5, 0], [12, 12]])
def test_logits_are_computed_only_for_as_many_chunks_as_the_fullest_row_needs(predicted):
    head, hidden, targets, _ = problem()
    weights = np.zeros((ROWS, SLOTS), np.float32)
    for row, count in enumerate(predicted):  # scattered over the row
        weights[row, np.random.default_rng(row).permutation(SLOTS)[:count]] = 1.0
    seen = []

    def watched(head, hidden):
        jax.debug.callback(lambda: seen.append(hidden.shape[1]))
        return logits(head, hidden)

    def total(hidden):
        return text_terms(watched, head, hidden, targets, jnp.asarray(weights), 4)["text"][0]

    for run in (total, jax.grad(total)):
        seen.clear()
        jax.block_until_ready(jax.jit(run)(hidden))
        jax.effects_barrier()
        assert seen == [4] * -(-max(predicted) // 4)


# ---- on a mesh ----------------------------------------------------------------------------

ON_A_MESH = """
import math, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tests.core.test_losses import our_loss, plain_loss
from unicom_jax.core.module import ParamSpec, normal
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.sharding import batch_sharding, param_sharding

rows, slots, width, vocabulary = 8, 128, 16, 512
mesh = make_mesh("fsdp=4,tensor=2")
rng = np.random.default_rng(0)
head = rng.standard_normal((width, vocabulary)).astype(np.float32)
hidden = rng.standard_normal((rows, slots, width)).astype(np.float32)
targets = rng.integers(0, vocabulary, (rows, slots)).astype(np.int32)
weights = (rng.random((rows, slots)) < 0.4).astype(np.float32)
arguments = head, hidden, targets, weights
expected, expected_grads = jax.value_and_grad(plain_loss, (0, 1))(*arguments)

shared = param_sharding(ParamSpec((width, vocabulary), ("embed", "vocab"), normal(1.0)), mesh)
by_rows = batch_sharding(mesh)
run = jax.jit(
    jax.value_and_grad(our_loss, (0, 1)),
    in_shardings=(shared, by_rows, by_rows, by_rows),
    out_shardings=(NamedSharding(mesh, PartitionSpec()), (shared, by_rows)),
).lower(*arguments).compile()
placed = (jax.device_put(x, s) for x, s in zip(arguments, (shared, by_rows, by_rows, by_rows)))
loss, grads = run(*placed)
np.testing.assert_allclose(loss, expected, rtol=1e-6)
for ours, plain in zip(grads, expected_grads, strict=True):
    np.testing.assert_allclose(ours, plain, atol=1e-6)

shapes = re.findall(r"f32\\[([\\d,]+)\\]", run.as_text())
sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
print(max(sizes), rows // 4 * slots * vocabulary // 2)
"""


def test_no_device_of_a_mesh_ever_holds_its_rows_logits_whole():
    # Two chunks of 64 slots; the vocabulary lies over two devices and is never gathered for a
    # chunk either, which would take as much.
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    largest, whole = map(int, done.stdout.split())
    assert largest <= whole // 2
