"""Adaptive layer norm that starts at zero: how time steers a block (DiT: Peebles & Xie 2023)."""

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
    scale: Float[Array, "*#B W"],
    shift: Float[Array, "*#B W"],
    eps: float = 1e-6,
) -> Float[Array, "*B W"]:
    """LayerNorm(x) · (1 + scale) + shift, without weights of its own, in the dtype of x."""
    normed = LayerNorm(x.shape[-1], eps=eps, affine=False)({}, x)
    return normed * (1 + scale.astype(x.dtype)) + shift.astype(x.dtype)
