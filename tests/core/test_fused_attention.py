"""The fused backend: its kernels, interpreted, against the dense backend; what they skip."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicom_jax.core.attention import attention, gpu, interval_mask, padding_mask, tpu
from unicom_jax.core.attention.blocks import block_states, fitting_block, with_fetches
from unicom_jax.core.attention.online import attend
from unicom_jax.core.batch import MaskIntervals

# Blocks of 8 x 8 leave slots to fill up on both sides.
ROWS, QUERIES, KEYS, HEADS, KV_HEADS = 2, 13, 21, 4, 1
# Channels of a head. On TPU two of four heads with so many are computed together, so that one
# program has all there is: heads together and one after another. GPU's fill up to a power of two.
DIM = {"tpu": 256, "gpu": 24}
kernels = pytest.mark.parametrize("platform", DIM)


def _inputs(platform: str, seed: int = 0, dtype=jnp.float32) -> tuple[jax.Array, ...]:
    """q, k, v and a gradient of the output."""
    rng, dim = np.random.default_rng(seed), DIM[platform]
    of_queries, of_keys = (ROWS, QUERIES, HEADS, dim), (ROWS, KEYS, KV_HEADS, dim)
    shapes = of_queries, of_keys, of_keys, of_queries
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def _value_and_gradients(function):
    def run(q, k, v, gradient, mask):
        scale = q.shape[-1] ** -0.5
        out, back = jax.vjp(lambda q, k, v: function(q, k, v, mask, scale=scale), q, k, v)
        return out, *back(gradient)

    return jax.jit(run)


def _fused(passes):
    how = {"blocks": (8, 8), "interpret": True}
    passes = partial(passes.forward, **how), partial(passes.backward, **how)
    return _value_and_gradients(partial(attend, *passes))


FUSED = {"tpu": _fused(tpu), "gpu": _fused(gpu)}
dense = _value_and_gradients(attention)


def _assert_equal_to_dense(platform: str, mask: MaskIntervals | None, seed: int = 0) -> None:
    inputs = _inputs(platform, seed)
    for found, wanted in zip(FUSED[platform](*inputs, mask), dense(*inputs, mask), strict=True):
        assert found.dtype == wanted.dtype
        scale = max(np.abs(wanted).max(), 1e-3)
        np.testing.assert_allclose(found / scale, wanted / scale, rtol=0, atol=1e-5)


def _mask(*bounds) -> MaskIntervals:
    """Four bounds, each broadcast to all queries."""
    return MaskIntervals(
        *(jnp.broadcast_to(jnp.asarray(x, jnp.int32), (ROWS, QUERIES)) for x in bounds)
    )


def _filled(mask: MaskIntervals) -> MaskIntervals:
    """With queries up to whole blocks."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, -QUERIES % 8))), mask)


@kernels
@settings(max_examples=20, deadline=None)
@given(
    bounds=st.lists(st.integers(-2, KEYS + 3), min_size=8 * QUERIES, max_size=8 * QUERIES),
    seed=st.integers(0, 9),
)
def test_value_and_gradients_are_those_of_dense_under_any_intervals(platform, bounds, seed):
    mask = MaskIntervals(*np.array(bounds, np.int32).reshape(4, ROWS, QUERIES))
    _assert_equal_to_dense(platform, mask, seed)


@kernels
def test_packed_documents_with_noisy_copies_are_honoured(platform):
    """Slots 5 ... 17 of a row of 21: two documents, the second ends with a copy of its image."""
    slots = np.arange(5, 18)
    second = slots >= 7
    image, noisy = (slots >= 9) & (slots < 12), (slots >= 14) & (slots < 17)
    stop = np.where(image, 12, np.where(noisy, 9, slots + 1))
    bounds = np.where(second, 7, 0), stop, np.where(noisy, 14, 0), np.where(noisy, 17, 0)
    _assert_equal_to_dense(platform, _mask(*bounds))


@kernels
def test_blocks_that_are_seen_whole_need_no_mask_and_count_as_much(platform):
    """The first eight queries see two blocks whole and one not, the others parts of three."""
    early = np.arange(QUERIES) < 8
    mask = _mask(np.where(early, 0, 3), np.where(early, 16, 20), 0, np.arange(QUERIES) % 3)
    assert {0, 1, 2} == set(np.array(block_states(_filled(mask), 24, 8, 8)).flat)
    _assert_equal_to_dense(platform, mask)


@kernels
def test_rows_that_see_nothing_are_zero_and_pass_no_gradient(platform):
    mask = padding_mask(jnp.array([0, 4]), QUERIES)
    out, *gradients = FUSED[platform](*_inputs(platform), mask)
    for x in (out, *gradients):
        np.testing.assert_array_equal(x[0], 0)
        assert np.isfinite(x).all() and np.abs(x[1]).max() > 0


@kernels
def test_blocks_that_nobody_sees_are_not_looked_at(platform):
    """Else 0 times NaN would show."""
    q, k, v, gradient = _inputs(platform)
    k, v = k.at[:, 8:16].set(jnp.nan), v.at[:, 8:16].set(jnp.nan)
    out, dq, dk, dv = FUSED[platform](q, k, v, gradient, _mask(0, 5, 17, 20))
    chex.assert_tree_all_finite((out, dq, dk, dv))
    np.testing.assert_array_equal(dk[:, 8:16], 0)


@kernels
def test_bfloat16_inputs_give_bfloat16_near_the_fp32_result(platform):
    mask = _mask(0, np.arange(QUERIES) + 4, 15, 19)
    low = FUSED[platform](*_inputs(platform, dtype=jnp.bfloat16), mask)
    for found, wanted in zip(low, dense(*_inputs(platform), mask), strict=True):
        assert found.dtype == jnp.bfloat16
        far = np.abs(found.astype(jnp.float32) - wanted).max()
        assert far < 0.01 * np.abs(wanted).max()


# -- blocks ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mask() -> MaskIntervals:
    return MaskIntervals(*np.random.default_rng(0).integers(-3, 20, (4, 40, 6)).astype(np.int32))


def test_states_tell_what_is_seen_of_a_block_and_whole_ones_are_wholly_seen(mask):
    states = np.array(block_states(mask, keys=16, queries=3, block=4))
    seen = np.array(interval_mask(mask, 16)).reshape(40, 2, 3, 4, 4)
    np.testing.assert_array_equal(states > 0, seen.any((2, 4)))
    assert seen.all((2, 4))[states == 2].all() and (states == 2).sum() > 5


def test_a_hidden_block_leaves_the_one_before_where_it_is():
    states = jnp.array([[0, 0, 1, 0, 2, 0], [0, 0, 0, 0, 0, 0]])
    codes = np.array(with_fetches(states)).reshape(2, 6)
    np.testing.assert_array_equal(codes & 3, states)
    np.testing.assert_array_equal(codes >> 2, [[2, 2, 2, 2, 4, 4], [0] * 6])


@pytest.mark.parametrize(
    "slots, block", [(4608, 512), (2304, 384), (1000, 512), (130, 256), (100, 128)]
)
def test_a_block_fits_the_slots(slots, block):
    assert fitting_block(slots) == block


# -- platforms ------------------------------------------------------------------------------------


def _step(backend: str):
    def loss(q, k, v, mask):
        return jnp.sum(attention(q, k, v, mask, backend=backend) ** 2)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


def test_where_there_is_no_kernel_it_computes_what_chunked_does():
    x = jax.random.normal(jax.random.key(0), (1, 130, 2, 8))
    mask = padding_mask(jnp.array([77]), 130)
    found, wanted = (_step(backend)(x, x, x, mask) for backend in ("fused", "chunked"))
    chex.assert_trees_all_equal(found, wanted)


def test_programs_for_tpu_and_gpu_have_the_kernels_though_they_were_traced_on_cpu():
    x = jax.ShapeDtypeStruct((1, 130, 2, 8), jnp.float32)
    mask = MaskIntervals(*[jax.ShapeDtypeStruct((1, 130), jnp.int32)] * 4)
    traced = _step("fused").trace(x, x, x, mask)
    calls = {"tpu": "@tpu_custom_call", "cuda": "@__gpu$xla.gpu.triton"}
    # Later versions of JAX ask which GPU it is; tests/planning compiles for one.
    platforms = ("tpu", "cuda", "cpu") if jax.__version_info__ < (0, 11) else ("tpu", "cpu")
    for platform in platforms:
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        found = {name: text.count(call) for name, call in calls.items()}
        assert found == {name: 3 * (name == platform) for name in calls}  # one forward, two back
