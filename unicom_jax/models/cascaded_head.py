"""Cheers' cascaded flow head: semantics first, then the details of the patches, gated.

    hidden states of n / fold² slots ─ stack ─ split to n tokens ─> Z'       (semantics)
    y = LayerNorm(Z' + G(Z') · e)            e: embedded patches of the decoded noisy picture
    y ─ stack ─> velocity of n latents, or another prediction                (details)

The gate G is one unbounded number per token and starts at 0 (arXiv 2603.12793, §3).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.grids import split_windows, token_mask
from unicom_jax.core.layers import LayerNorm, Linear, TimeEmbedding
from unicom_jax.core.module import Module, Params, Specs, zeros
from unicom_jax.core.scopes import in_module
from unicom_jax.models.modulated_stack import ModulatedStack

# "released": the second stage of the published code counts to half of a picture's tokens, twice.
POSITIONS = ("plain", "released")


def in_halves(places: Int[Array, " N"], tokens: Int[Array, "*B 1"]) -> Int[Array, "*B N"]:
    """Positions of a picture's tokens, of which both halves count from 0.

    Of an odd number, which the published code never has, the first half has one more.
    """
    return places % jnp.maximum((tokens + 1) // 2, 1)


@dataclasses.dataclass(frozen=True)
class DetailGate(Module):
    """Linear -> SiLU -> Linear to one number per token, 0 at the start."""

    width: int

    @property
    def up(self) -> Linear:
        return Linear(self.width, self.width, axes=("embed", None))

    @property
    def down(self) -> Linear:
        return Linear(self.width, 1, axes=("embed", None), init_kernel=zeros)

    def specs(self) -> Specs:
        return {"up": self.up.specs(), "down": self.down.specs()}

    @in_module("gate")
    def __call__(
        self, params: Params, x: Float[Array, "*B {self.width}"]
    ) -> Float32[Array, "*B 1"]:
        inner = jax.nn.silu(self.up(params["up"], x))
        return self.down(params["down"], inner.astype(jnp.float32))


@flax.struct.dataclass
class Cascade:
    """The head's outputs.

    Attributes:
      prediction: velocities in the paper; 0 at padding.
      gate: G of each token, 0 at padding; None for a head without a gate.
    """

    prediction: Float32[Array, "*B N d"]
    gate: Float32[Array, "*B N"] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadedHead(Module):
    """Two stages of blocks with the gated details added between them.

    Attributes:
      semantics: the first stage, from hidden states to fold² tokens of `details.width`.
      details: the second stage, from those tokens to predictions.
      fold: tokens along a side of a slot.
      gate: whether details are added at all (the paper's ablation).
      norm: LayerNorm of the sum, as in the published code; the paper's formula has none.
      positions: rotary positions of the second stage, one of `POSITIONS`; "plain" is raster order.
    """

    semantics: ModulatedStack
    details: ModulatedStack
    fold: int = 2
    gate: bool = True
    norm: bool = True
    positions: str = "plain"

    def __post_init__(self) -> None:
        wanted = self.fold**2 * self.details.width
        if self.semantics.out_dim != wanted:
            raise ValueError(
                f"the first stage gives {self.semantics.out_dim} numbers a slot; {self.fold**2} "
                f"tokens of {self.details.width} are {wanted}"
            )
        if self.positions not in POSITIONS:
            raise ValueError(
                f"unified.cheers.positions={self.positions!r} is not one of {', '.join(POSITIONS)}"
            )

    @property
    def parts(self) -> dict[str, Module]:
        """The parts, by the names of their weights. Times enter unscaled, between 0 and 1."""
        parts = {
            "semantics": self.semantics,
            "semantics_time": TimeEmbedding(self.semantics.width, scale=1.0),
            "details": self.details,
            "details_time": TimeEmbedding(self.details.width, scale=1.0),
        }
        if self.gate:
            parts["gate"] = DetailGate(self.details.width)
        if self.norm:
            parts["norm"] = LayerNorm(self.details.width, eps=1e-5)
        return parts

    def specs(self) -> Specs:
        return {name: part.specs() for name, part in self.parts.items()}

    def __call__(
        self,
        params: Params,
        hidden: Float[Array, "B n W"],
        time: Float[Array, " B"],
        embedded: Float[Array, "B N {self.details.width}"],
        grids: Int[Array, "B 2"],
    ) -> Cascade:
        """Predictions for N = n · fold² latents.

        Args:
          hidden: hidden states of an image's slots, after the transformer's last norm.
          time: flow time.
          embedded: e, the patches embedded by the image encoder; not read without a gate.
          grids: rows and columns of latents, multiples of `fold`; (0, 0): no image.
        """
        slots = grids // self.fold
        stage, dtype = partial(self._stage, params, time=time[:, None]), hidden.dtype
        joined = stage("semantics", hidden, slots, jnp.arange(hidden.shape[1]), dtype=dtype)
        semantic = split_windows(joined, grids, self.fold)
        summed, gate = self._with_details(params, semantic, embedded)
        places = jnp.arange(semantic.shape[1])
        if self.positions == "released":
            places = in_halves(places, grids[:, :1] * grids[:, 1:])
        given = stage("details", summed, grids, places)
        real = token_mask(grids, semantic.shape[1])
        return Cascade(
            jnp.where(real[..., None], given, 0.0),
            None if gate is None else jnp.where(real, gate[..., 0], 0.0),
        )

    def _stage(
        self,
        params: Params,
        name: str,
        tokens: jax.Array,
        grids: jax.Array,
        places: jax.Array,
        *,
        time: jax.Array,
        dtype: Any = jnp.float32,
    ) -> jax.Array:
        when = self.parts[f"{name}_time"](params[f"{name}_time"], time)
        lengths = grids[:, 0] * grids[:, 1]
        run = in_module(name)(self.parts[name].__call__)
        return run(params[name], tokens, when, lengths, places, dtype)

    def _with_details(
        self, params: Params, semantic: Float[Array, "B N V"], embedded: Float[Array, "B N V"]
    ) -> tuple[Float[Array, "B N V"], Float32[Array, "B N 1"] | None]:
        """LayerNorm(Z' + G(Z') · e), and G."""
        parts, total, gate = self.parts, semantic, None
        if self.gate:
            gate = parts["gate"](params["gate"], semantic)
            total = semantic + (gate * embedded).astype(semantic.dtype)
        return (parts["norm"](params["norm"], total) if self.norm else total), gate
