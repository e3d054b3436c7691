"""Adaptive layer norm that starts at zero: how time steers a block (DiT: Peebles & Xie 2023).

Scale, shift and gate stay fp32 until they are applied to the activations, and the result is rounded
once. In bfloat16 a scale below .004 would vanish in 1 + scale.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from unicom_jax.core.layers import LayerNorm, Linear, RMSNorm
from unicom_jax.core.module import Initializer, Module, Params, Specs, zeros


@dataclasses.dataclass(frozen=True)
class Modulation(Module):
    """`parts` vectors of `dim` from a conditioning vector: SiLU -> Linear, fp32.

    By default all parts are 0 at the start, so a gated residual block begins as the identity.
    """

    condition_dim: int
    dim: int
    parts: int
    init_kernel: Initializer = dataclasses.field(default=zeros, repr=False)

    @property
    def linear(self) -> Linear:
        out_dim = self.parts * self.dim
        return Linear(
            self.condition_dim, out_dim, axes=("embed", None), init_kernel=self.init_kernel
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
    """LayerNorm(x) · (1 + scale) + shift, by a norm without weights; rounded to x's dtype."""
    norm = LayerNorm(x.shape[-1], eps=eps, affine=False)
    return modulate(norm, {}, x, scale, shift).astype(x.dtype)


def modulate(
    norm: LayerNorm | RMSNorm,
    params: Params,
    x: Float[Array, "*B W"],
    scale: Float32[Array, "*#B W"],
    shift: Float32[Array, "*#B W"],
) -> Float32[Array, "*B W"]:
    """norm(x) · (1 + scale) + shift, by a norm that may have weights; fp32."""
    return norm(params, x.astype(jnp.float32)) * (1 + scale) + shift


def gated_sum(
    x: Float[Array, "*B W"], gate: Float32[Array, "*#B W"], update: Float[Array, "*B W"]
) -> Float[Array, "*B W"]:
    """x + gate · update, rounded to the dtype of x."""
    return (x.astype(jnp.float32) + gate * update).astype(x.dtype)
