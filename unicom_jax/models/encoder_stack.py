"""What SigLIP's image and text towers share: sizes, bidirectional pre-LayerNorm blocks, a norm.

Equal blocks are one tree of weights with a leading `layers` axis, run by `jax.lax.scan`, so that
compile time does not grow with depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

import jax
from jaxtyping import Array, Float

from unicom_jax.core.activations import PICTURES, place
from unicom_jax.core.attention import attention, check_backend
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.layers import LayerNorm, Linear, Mlp
from unicom_jax.core.module import Module, Params, Specs, stack_specs
from unicom_jax.core.remat import REMAT_POLICIES, check_remat


@dataclasses.dataclass(frozen=True)
class EncoderSize:
    """Sizes of a tower: width, blocks, attention heads, hidden width of the MLP."""

    width: int
    depth: int
    heads: int
    mlp_dim: int


# SigLIP 2 (arXiv 2502.14786 §2), with the shapes of big_vision's `vit.py`.
ENCODER_SIZES = {
    "base": EncoderSize(width=768, depth=12, heads=12, mlp_dim=3072),
    "large": EncoderSize(width=1024, depth=24, heads=16, mlp_dim=4096),
    "so400m": EncoderSize(width=1152, depth=27, heads=16, mlp_dim=4304),
    "giant_opt": EncoderSize(width=1536, depth=40, heads=16, mlp_dim=6144),
}


@dataclasses.dataclass(frozen=True)
class EncoderAttention(Module):
    """Multi-head attention with four biases."""

    width: int
    heads: int
    backend: str = "dense"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not a multiple of heads {self.heads}; change one of them"
            )
        check_backend(self.backend)

    @property
    def inward(self) -> Linear:
        return Linear(self.width, self.width, axes=("embed", "heads"))

    @property
    def outward(self) -> Linear:
        return Linear(self.width, self.width, axes=("heads", "embed"))

    def specs(self) -> Specs:
        inward = {name: self.inward.specs() for name in ("query", "key", "value")}
        return {**inward, "out": self.outward.specs()}

    def __call__(
        self,
        params: Params,
        queries: Float[Array, "B S {self.width}"],
        memory: Float[Array, "B T {self.width}"],
        mask: MaskIntervals | None = None,
    ) -> Float[Array, "B S {self.width}"]:
        def heads(name: str, x: jax.Array) -> jax.Array:
            return self.inward(params[name], x).reshape(
                *x.shape[:-1], self.heads, self.width // self.heads
            )

        seen = attention(
            heads("query", queries),
            heads("key", memory),
            heads("value", memory),
            mask,
            backend=self.backend,
        )
        return self.outward(params["out"], seen.reshape(queries.shape))


@dataclasses.dataclass(frozen=True)
class EncoderBlock(Module):
    """x += Attention(LN x); x += Mlp(LN x)."""

    width: int
    heads: int
    mlp_dim: int
    backend: str = "dense"
    norm_eps: float = 1e-6

    @property
    def norm(self) -> LayerNorm:
        return LayerNorm(self.width, self.norm_eps)

    @property
    def attention(self) -> EncoderAttention:
        return EncoderAttention(self.width, self.heads, self.backend)

    @property
    def mlp(self) -> Mlp:
        return Mlp(self.width, self.mlp_dim, self.width, activation="gelu_tanh")

    def specs(self) -> Specs:
        return {
            "attention_norm": self.norm.specs(),
            "attention": self.attention.specs(),
            "mlp_norm": self.norm.specs(),
            "mlp": self.mlp.specs(),
        }

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B S {self.width}"],
        mask: MaskIntervals | None = None,
    ) -> Float[Array, "B S {self.width}"]:
        y = self.norm(params["attention_norm"], x)
        x = x + self.attention(params["attention"], y, y, mask)
        return x + self.mlp(params["mlp"], self.norm(params["mlp_norm"], x))


@dataclasses.dataclass(frozen=True)
class EncoderStack(Module):
    """`depth` equal blocks, without a final norm.

    `remat` is a key of `REMAT_POLICIES`; `backend` is passed to `core.attention.attention`.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    remat: str = "none"
    backend: str = "dense"
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_remat(self.remat)

    @property
    def block(self) -> EncoderBlock:
        return EncoderBlock(self.width, self.heads, self.mlp_dim, self.backend, self.norm_eps)

    def specs(self) -> Specs:
        return stack_specs(self.block.specs(), self.depth)

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B S {self.width}"],
        mask: MaskIntervals | None = None,
    ) -> Float[Array, "B S {self.width}"]:
        return self.run(params, x, mask, 0, self.depth)

    def run(
        self,
        params: Params,
        x: Float[Array, "B S {self.width}"],
        mask: MaskIntervals | None,
        start: int,
        stop: int,
    ) -> Float[Array, "B S {self.width}"]:
        """Blocks start, ..., stop - 1."""

        def step(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
            return self.block(weights, place(x, PICTURES), mask), None

        weights = (
            jax.tree.map(lambda weight: weight[start:stop], params)
            if (start, stop) != (0, self.depth)
            else params
        )
        return jax.lax.scan(REMAT_POLICIES[self.remat](step), x, weights)[0]

    def hidden_states(
        self,
        params: Params,
        x: Float[Array, "B S {self.width}"],
        mask: MaskIntervals | None,
        layers: Sequence[int],
    ) -> tuple[Float[Array, "B S {self.width}"], ...]:
        """The residual stream after `k` blocks for every k in `layers` (0: the input).

        Blocks deeper than the last one asked for do not run. Raises ValueError where a layer is
        not in [0, depth].
        """
        if wrong := [layer for layer in layers if not 0 <= layer <= self.depth]:
            raise ValueError(
                f"layers {wrong} are outside [0, {self.depth}], the depth of this encoder"
            )
        states, done = {0: x}, 0
        for layer in sorted(set(layers) - {0}):
            states[layer] = self.run(params, states[done], mask, done, layer)
            done = layer
        return tuple(states[layer] for layer in layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tower(Module):
    """Base of both towers.

    Attributes:
      remat: a key of `core.remat.REMAT_POLICIES`.
      attention_backend: see `core.attention.attention`.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    remat: str = "none"
    attention_backend: str = "dense"

    @classmethod
    def named(cls, name: str, **fields) -> Self:
        """The tower of `ENCODER_SIZES[name]`. Raises ValueError for an unknown name."""
        if name not in ENCODER_SIZES:
            raise ValueError(
                f"encoder size {name!r} is unknown; take one of {', '.join(ENCODER_SIZES)}"
            )
        return cls(**dataclasses.asdict(ENCODER_SIZES[name]), **fields)

    @property
    def stack(self) -> EncoderStack:
        return EncoderStack(
            self.width, self.depth, self.heads, self.mlp_dim, self.remat, self.attention_backend
        )

    @property
    def norm(self) -> LayerNorm:
        return LayerNorm(self.width)
