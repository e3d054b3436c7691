"""Adaptive layer norm that starts at zero: how time steers a block (DiT: Peebles & Xie 2023)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

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

    def __call__(self, params: Params, condition: jax.Array) -> list[jax.Array]:
        """Condition (..., condition_dim) -> `parts` arrays (..., dim)."""
        parts = self.linear(params, jax.nn.silu(condition))
        return jnp.split(parts, self.parts, axis=-1)


def modulated_norm(
    x: jax.Array, scale: jax.Array, shift: jax.Array, eps: float = 1e-6
) -> jax.Array:
    """LayerNorm(x) · (1 + scale) + shift, without weights of its own, in the dtype of x."""
    normed = LayerNorm(x.shape[-1], eps=eps, affine=False)({}, x)
    return normed * (1 + scale.astype(x.dtype)) + shift.astype(x.dtype)
