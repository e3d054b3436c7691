"""Adaptive layer norm that starts at zero: how time steers a block (DiT: Peebles & Xie 2023).

Scale, shift and gate stay fp32 until they meet the activations, and the result is rounded once. In
bfloat16 a scale below .004 would vanish in 1 + scale.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from unicom_jax.core.layers import LayerNorm, Linear
from unicom_jax.core.module import Module, Params, Specs, zeros


@dataclasses.dataclass(frozen=True)
class Modulation(Module):
    """`parts` vectors of `dim` from a conditioning vector: SiLU -> zero-initialised Linear, fp32.

    All parts are 0 at the start, so a gated branch begins as the identity.
    """

    condition_dim: int
    dim: int
    parts: int

    @property
    def linear(self) -> Linear:
        return Linear(
            self.condition_dim, self.parts * self.dim, axes=("embed", None), init_kernel=zeros
        )

    def specs(self) -> Specs:
        return self.linear.specs()

    def __call__(
        self, params: Params, condition: Float32[Array, "*B {self.condition_dim}"]
    ) -> list[Float32[Array, "*B {self.dim}"]]:
        parts = self.linear(params, jax.nn.silu(condition))
        return jnp.split(parts, self.parts, axis=-1)


def modulated_norm(
    x: Float[Array, "*B W"],
    scale: Float32[Array, "*#B W"],
    shift: Float32[Array, "*#B W"],
    eps: float = 1e-6,
) -> Float[Array, "*B W"]:
    """LayerNorm(x) · (1 + scale) + shift, without weights of its own; rounded to the dtype of x."""
    normed = LayerNorm(x.shape[-1], eps=eps, affine=False)({}, x.astype(jnp.float32))
    return (normed * (1 + scale) + shift).astype(x.dtype)


def gated_sum(
    x: Float[Array, "*B W"], gate: Float32[Array, "*#B W"], update: Float[Array, "*B W"]
) -> Float[Array, "*B W"]:
    """x + gate · update, rounded to the dtype of x."""
    return (x.astype(jnp.float32) + gate * update).astype(x.dtype)
