"""Modulation acts in full precision on activations of any."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core.attention import padding_mask
from unicom_jax.core.modulation import gated_sum, modulated_norm
from unicom_jax.models.flow_head import AdaLnHead
from unicom_jax.models.flux import SingleBlock
from unicom_jax.models.pixel_decoder import DecoderBlock
from unicom_jax.models.streams import Stream

KEY = jax.random.key(0)
SMALL = 0.003  # 1 + this is 1 in bfloat16


def normal(*shape: int, dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(KEY, shape).astype(dtype)


class WithAndWithoutJit(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_a_scale_that_bf16_cannot_add_to_one_acts(self):
        x, zero = normal(64, 256, dtype=jnp.bfloat16), jnp.zeros(256)
        norm = self.variant(modulated_norm)
        plain = norm(x, zero, zero).astype(jnp.float32)
        scaled = norm(x, zero + SMALL, zero)
        assert scaled.dtype == jnp.bfloat16
        # Single numbers may round to the same; their sum does not.
        ratio = jnp.sum(jnp.abs(scaled.astype(jnp.float32))) / jnp.sum(jnp.abs(plain))
        assert float(ratio) == pytest.approx(1 + SMALL, abs=3e-4)

    @chex.variants(with_jit=True, without_jit=True)
    def test_a_gated_sum_is_rounded_once(self):
        x, update = normal(4, 8, dtype=jnp.bfloat16), normal(4, 8, dtype=jnp.bfloat16)
        gate = jnp.full(8, 1 + SMALL)
        expected = x.astype(jnp.float32) + gate * update.astype(jnp.float32)
        found = self.variant(gated_sum)(x, gate, update)
        np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))


def blocks():
    """(module, function of its weights and of x in bf16) of every kind of steered block."""
    width, heads = 16, 2
    decoder, stream = DecoderBlock(width, heads, 24), Stream(heads, 8)
    single = SingleBlock(heads, 8)
    head = AdaLnHead(width, 4, width, depth=2, remat="full")
    steer = normal(2, 1, width)
    turns = (jnp.ones((2, 5, 4)), jnp.zeros((2, 5, 4)))
    mask = padding_mask(jnp.array([5, 4]), 5)

    def of_stream(params, x):
        steers = stream.steer(params, steer)
        mixed = stream.project(params, x, steers)[0].reshape(x.shape)
        return stream.finish(params, x, mixed, steers)

    return {
        "decoder": (decoder, lambda params, x: decoder(params, x, steer, turns, mask)),
        "stream": (stream, of_stream),
        "single": (single, lambda params, x: single(params, x, steer, turns, mask)),
        "head": (head, lambda params, x: head(params, x, jnp.full((2, 1), 0.3))),
    }


@pytest.mark.parametrize("name", ["decoder", "stream", "single", "head"])
def test_no_block_rounds_what_steers_it(name):
    """Scales, shifts and gates, one a picture, stay fp32 until they meet the activations."""
    module, run = blocks()[name]
    x = jax.ShapeDtypeStruct((2, 5, 16), jnp.bfloat16)
    jaxpr = str(jax.make_jaxpr(run)(module.abstract(), x))
    assert "bf16[2,5,16]" in jaxpr and "bf16[2,1,16]" not in jaxpr
