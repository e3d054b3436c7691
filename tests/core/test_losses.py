"""The text loss: what it is worth, what it skips, and what it never holds at once."""

from __future__ import annotations

import json
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from tests.parallel.programs import on_eight_devices
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


plain_gradients = jax.jit(jax.value_and_grad(plain_loss, (0, 1)))


def our_loss(head, hidden, targets, weights, chunk=0):
    total, count = text_terms(logits, head, hidden, targets, weights, chunk)["text"]
    return total / count


class WithAndWithoutJit(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(0, 1, 5, 12, 100)
    def test_value_and_gradients_are_those_of_the_plain_loss_whatever_the_chunk(self, chunk):
        expected, expected_grads = plain_gradients(*problem())
        ours = self.variant(jax.value_and_grad(partial(our_loss, chunk=chunk), (0, 1)))
        loss, grads = ours(*problem())
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        chex.assert_trees_all_close(grads, expected_grads, rtol=1e-7, atol=1e-6)


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

    expected, expected_grads = jax.jit(jax.value_and_grad(plain, (0, 1)))(head, hidden)
    (loss, terms), grads = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(head, hidden)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    chex.assert_trees_all_close(grads, expected_grads, rtol=1e-7, atol=1e-5)
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


@pytest.mark.parametrize("predicted", [[0, 0], [3, 1], [4, 4], [5, 0], [5, 4], [12, 12]])
def test_logits_are_computed_only_for_as_many_chunks_as_predicted_slots_fill(predicted):
    head, hidden, targets, _ = problem()
    weights = np.zeros((ROWS, SLOTS), np.float32)
    for row, count in enumerate(predicted):  # scattered over the row
        weights[row, np.random.default_rng(row).permutation(SLOTS)[:count]] = 1.0
    seen = []

    def watched(head, hidden):
        jax.debug.callback(lambda: seen.append(hidden.shape[0]))
        return logits(head, hidden)

    def total(hidden):
        return text_terms(watched, head, hidden, targets, jnp.asarray(weights), 4)["text"][0]

    for run in (total, jax.grad(total)):
        seen.clear()
        jax.block_until_ready(jax.jit(run)(hidden))
        jax.effects_barrier()
        assert seen == [4 * ROWS] * -(-sum(predicted) // (4 * ROWS))


# ---- on a mesh ----------------------------------------------------------------------------

ON_A_MESH = """
import json, sys
import chex, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tests.core.test_losses import logits, plain_loss
from unicom_jax.core.activations import on_mesh
from unicom_jax.core.losses import text_terms
from unicom_jax.core.module import ParamSpec, normal
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.plan.costs import count_costs
from unicom_jax.parallel.plan.hlo import parse_program
from unicom_jax.parallel.sharding import batch_sharding, param_sharding

rows, slots, width, vocabulary = 8, 128, 16, 512
mesh = make_mesh(sys.argv[1])
rng = np.random.default_rng(0)
head = rng.standard_normal((width, vocabulary)).astype(np.float32)
hidden = rng.standard_normal((rows, slots, width)).astype(np.float32)
targets = rng.integers(0, vocabulary, (rows, slots)).astype(np.int32)
weights = (rng.random((rows, slots)) < 0.4).astype(np.float32)
weights[: rows // 2] = 0  # the devices of these rows have nothing to predict
arguments = head, hidden, targets, weights
expected, expected_grads = jax.value_and_grad(plain_loss, (0, 1))(*arguments)

spec = ParamSpec((width, vocabulary), ("embed", "vocab"), normal(1.0))
shared, by_rows = param_sharding(spec, mesh), batch_sharding(mesh)


def loss_of(*arguments):
    with on_mesh(mesh):
        total, count = text_terms(logits, *arguments, specs=spec)["text"]
    return total / count


run = jax.jit(
    jax.value_and_grad(loss_of, (0, 1)),
    in_shardings=(shared, by_rows, by_rows, by_rows),
    out_shardings=(NamedSharding(mesh, PartitionSpec()), (shared, by_rows)),
).lower(*arguments).compile()
hidden[: rows // 2] = np.nan  # whoever computes their logits finds out
placed = [jax.device_put(x, s) for x, s in zip(arguments, (shared, by_rows, by_rows, by_rows))]
loss, grads = run(*placed)
np.testing.assert_allclose(loss, expected, rtol=1e-6)
chex.assert_trees_all_close(grads, expected_grads, rtol=1e-7, atol=1e-6)

program = parse_program(run.as_text())
moved = [
    [one.kind, one.times, array.shape]
    for _, one in count_costs(program).collectives
    for array in one.arrays
    if array.size * (8 if one.kind == "all-gather" else 1) >= width * vocabulary // 2
]
largest = max(
    array.size
    for computation in program.computations.values()
    for one in computation.instructions
    for array in one.outputs
    if array.dtype == "f32"
)
print(json.dumps({"largest": largest, "moved": moved}))
"""


@pytest.fixture(scope="module", params=["fsdp=4,tensor=2", "data=2,fsdp=4"])
def on_a_mesh(request):
    """Mesh and findings. Values and gradients agree already, and devices without targets skip."""
    return request.param, json.loads(on_eight_devices("-c", ON_A_MESH, request.param).stdout)


def test_on_a_mesh_devices_skip_chunks_by_their_own_rows_and_hold_no_row_of_logits(on_a_mesh):
    mesh, found = on_a_mesh
    rows, columns = (2, 256) if "tensor" in mesh else (1, 512)
    assert found["largest"] <= rows * 128 * columns // 2  # two chunks


def test_the_head_is_gathered_once_and_its_gradient_scattered_once(on_a_mesh):
    _, found = on_a_mesh
    kinds = sorted(kind for kind, times, _ in found["moved"] for _ in range(times))
    assert kinds == ["all-gather", "reduce-scatter"]
