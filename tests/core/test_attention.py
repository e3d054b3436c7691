"""All attention backends against a loop over queries, heads and keys."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from unicom_jax.core.attention import (
    ATTENTION_BACKENDS,
    attention,
    check_backend,
    interval_mask,
    padding_mask,
)
from unicom_jax.core.batch import MaskIntervals

BATCH, QUERIES, KEYS, HEADS, KV_HEADS, DIM = 2, 5, 7, 4, 2, 4
VARIANTS = [("dense", None), ("chunked", 1), ("chunked", 3), ("chunked", 7), ("chunked", None)]
variants = pytest.mark.parametrize("backend, block", VARIANTS)


def _inputs(seed: int = 0, dtype=np.float64) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    shapes = [(QUERIES, HEADS), (KEYS, KV_HEADS), (KEYS, KV_HEADS)]
    return tuple(
        rng.normal(size=(BATCH, slots, heads, DIM)).astype(dtype) for slots, heads in shapes
    )


def _sees(mask: MaskIntervals, row: int, query: int, key: int) -> bool:
    a, b, c, d = (int(x[row, query]) for x in jax.tree.leaves(mask))
    return a <= key < b or c <= key < d


def _reference(q, k, v, mask: MaskIntervals | None) -> np.ndarray:
    """The definition, one number at a time."""
    out = np.zeros(q.shape, np.float64)
    for row, query, head in np.ndindex(q.shape[:3]):
        shared = head // (q.shape[2] // k.shape[2])
        seen = [j for j in range(k.shape[1]) if mask is None or _sees(mask, row, query, j)]
        if seen:
            scores = np.array([q[row, query, head] @ k[row, j, shared] for j in seen]) / DIM**0.5
            weights = np.exp(scores - scores.max())
            values = np.array([v[row, j, shared] for j in seen])
            out[row, query, head] = weights @ values / weights.sum()
    return out


def _masks(low: int = -2, high: int = KEYS + 3) -> st.SearchStrategy[MaskIntervals]:
    """Any four bounds a query: empty, overlapping, reversed and out of range ones included."""
    size = 4 * BATCH * QUERIES
    bounds = st.lists(st.integers(low, high), min_size=size, max_size=size)
    return bounds.map(lambda x: MaskIntervals(*np.array(x, np.int32).reshape(4, BATCH, QUERIES)))


def _value_and_gradients(backend, block):
    def loss(q, k, v, mask, weights):
        out = attention(q, k, v, mask, backend=backend, block=block)
        return jnp.sum(out * weights), out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


COMPILED = {variant: _value_and_gradients(*variant) for variant in VARIANTS}


def _numeric_gradients(q, k, v, mask, weights) -> list[np.ndarray]:
    """Central differences of the reference along one random direction per input."""
    rng, step, slopes = np.random.default_rng(1), 1e-6, []
    for index in range(3):
        direction = rng.normal(size=(q, k, v)[index].shape)
        ends = []
        for sign in (1, -1):
            moved = [q, k, v]
            moved[index] = moved[index] + sign * step * direction
            ends.append(np.sum(_reference(*moved, mask) * weights))
        slopes.append((direction, (ends[0] - ends[1]) / (2 * step)))
    return slopes


@variants
@settings(max_examples=15, deadline=None)
@given(mask=_masks(), seed=st.integers(0, 99))
def test_forward_and_gradient_equal_the_definition_under_any_intervals(backend, block, mask, seed):
    inputs = _inputs(seed)
    weights = np.random.default_rng(seed + 1).normal(size=inputs[0].shape)
    low = [jnp.asarray(x, jnp.float32) for x in (*inputs, weights)]
    (_, out), gradients = COMPILED[backend, block](*low[:3], mask, low[3])
    np.testing.assert_allclose(out, _reference(*inputs, mask), atol=1e-5)
    slopes = _numeric_gradients(*inputs, mask, weights)
    for gradient, (direction, slope) in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-5, atol=1e-5)


class WithAndWithoutJit(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*VARIANTS)
    def test_without_a_mask_every_query_sees_every_key(self, backend, block):
        inputs = _inputs(dtype=np.float32)
        run = self.variant(partial(attention, backend=backend, block=block))
        np.testing.assert_allclose(run(*inputs), _reference(*inputs, None), atol=1e-5)


@variants
def test_rows_that_see_nothing_are_zero_and_pass_no_gradient(backend, block):
    q, k, v = (jnp.asarray(x, jnp.float32) for x in _inputs())
    mask = padding_mask(jnp.array([0, 4]), QUERIES)
    (_, out), gradients = COMPILED[backend, block](q, k, v, mask, jnp.ones_like(q))
    np.testing.assert_array_equal(out[0], 0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[0], 0)
        assert np.isfinite(gradient).all() and np.abs(gradient[1]).max() > 0


@variants
def test_what_hidden_keys_hold_is_of_no_consequence(backend, block):
    q, k, v = (jnp.asarray(x, jnp.float32) for x in _inputs())
    mask = padding_mask(jnp.array([3, 4]), QUERIES)
    out = attention(q, k, v, mask, backend=backend, block=block)
    k, v = k.at[:, 4:].set(1e6), v.at[:, 4:].set(-1e6)
    np.testing.assert_array_equal(out, attention(q, k, v, mask, backend=backend, block=block))


@variants
def test_large_scores_do_not_overflow(backend, block):
    q, k, v = (1e3 * jnp.asarray(x, jnp.float32) for x in _inputs())
    mask = padding_mask(jnp.array([5, 7]), QUERIES)
    (_, out), gradients = COMPILED[backend, block](q, k, v, mask, jnp.ones_like(q))
    chex.assert_tree_all_finite((out, gradients))


@variants
def test_bfloat16_inputs_give_bfloat16_near_the_fp32_result(backend, block):
    inputs = [jnp.asarray(x, jnp.float32) for x in _inputs()]
    low = attention(*(x.astype(jnp.bfloat16) for x in inputs), backend=backend, block=block)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), attention(*inputs), atol=0.05)


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
def test_the_scale_can_be_chosen(backend):
    q, k, v = (jnp.asarray(x, jnp.float32) for x in _inputs())
    chosen = attention(q, k, v, backend=backend, scale=0.1)
    np.testing.assert_allclose(chosen, attention(q * 0.1 * DIM**0.5, k, v), atol=1e-5)


def _temporary_bytes(backend: str, slots: int) -> int:
    x = jax.ShapeDtypeStruct((1, slots, 2, 8), jnp.float32)
    bound = jax.ShapeDtypeStruct((1, slots), jnp.int32)
    step = _value_and_gradients(backend, 32 if backend == "chunked" else None)
    compiled = step.lower(x, x, x, MaskIntervals(*[bound] * 4), x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_chunked_grows_with_the_length_and_that_of_dense_with_its_square():
    growth = {
        b: _temporary_bytes(b, 8192) / _temporary_bytes(b, 2048) for b in ("dense", "chunked")
    }
    assert growth["chunked"] < 4.5
    assert growth["dense"] > 12


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
def test_it_lowers_for_tpu_with_its_gradient(backend):
    q, k, v = (jnp.asarray(x, jnp.float32) for x in _inputs())
    step = _value_and_gradients(backend, None)
    mask = padding_mask(jnp.array([3, 4]), QUERIES)
    step.trace(q, k, v, mask, q).lower(lowering_platforms=("tpu",))


def test_vmap_over_a_further_axis_equals_a_loop():
    q, k, v = (jnp.stack([jnp.asarray(x, jnp.float32)] * 2) for x in _inputs())
    q = q.at[1].multiply(-1)
    out = jax.vmap(lambda q, k, v: attention(q, k, v, backend="chunked", block=3))(q, k, v)
    np.testing.assert_allclose(out[1], attention(q[1], k[1], v[1]), atol=1e-5)


def test_intervals_draw_the_picture_in_the_docstring_of_the_mask():
    """a b [x x] c | [n n] of `MaskIntervals`: text, clean image, text, noisy copy."""
    fields = [(0, 1), (0, 2), (0, 4), (0, 4), (0, 5), (0, 2), (0, 2)]
    spans = [(0, 0)] * 5 + [(5, 7)] * 2
    bounds = [(*field, *span) for field, span in zip(fields, spans, strict=True)]
    bounds = np.array(bounds, np.int32)
    drawn = interval_mask(MaskIntervals(*bounds.T[:, None]), 7)[0].astype(int)
    rows = ["1000000", "1100000", "1111000", "1111000", "1111100", "1100011", "1100011"]
    np.testing.assert_array_equal(drawn, [[int(x) for x in row] for row in rows])


def test_a_padding_mask_shows_each_row_its_length():
    drawn = interval_mask(padding_mask(jnp.array([0, 2, 3]), 2), 3)
    np.testing.assert_array_equal(drawn.sum(-1), [[0, 0], [2, 2], [3, 3]])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"backend": "flash"}, "unknown attention backend 'flash'; use one of"),
        ({"block": 4}, "only 'chunked' takes"),
        (
            {"backend": "fused", "q": (2, 5, 4, 258), **dict.fromkeys("kv", (2, 7, 2, 258))},
            "head_dim of at most 256, got 258; use 'chunked'",
        ),
        ({"backend": "chunked", "block": 0}, "only 'chunked' takes"),
        ({"k": (2, 7, 3, 4), "v": (2, 7, 3, 4)}, "make heads a multiple of kv_heads"),
        ({"v": (2, 6, 2, 4)}, r"equal k, v \(B, T, K, D\)"),
        ({"k": (3, 7, 2, 4), "v": (3, 7, 2, 4)}, "one batch size and one head_dim"),
        ({"mask": padding_mask(jnp.array([1, 2]), 4)}, "one pair of intervals per query"),
    ],
)
def test_what_cannot_be_honoured_is_refused(change, message):
    shapes = {"q": (2, 5, 4, 4), "k": (2, 7, 2, 4), "v": (2, 7, 2, 4)}
    arrays = {name: jnp.zeros(change.get(name, shape)) for name, shape in shapes.items()}
    options = {name: value for name, value in change.items() if name not in shapes}
    with pytest.raises(ValueError, match=message):
        attention(**arrays, **options)


def test_a_configuration_can_be_checked_before_anything_runs():
    check_backend("chunked", 64)
    with pytest.raises(ValueError, match="unknown attention backend"):
        check_backend("splash")
