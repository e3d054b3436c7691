"""Compressor and decompressor: encoder features (B, N, F) to latents (B, n, d) and back, in fp32.

Four kinds, all without position embeddings:

  attention  self-attention over the image, then a gated MLP (the paper's; UniTok: Ma et al. 2025)
  mlp        a two-layer MLP per token (the paper's ablation)
  pool       each window x window square of tokens becomes one latent: n = N / window²
  identity   no compression

All products are fp32 (`core.precision`), whatever `compute_dtype` is: these latents are what the
statistics are measured on and what a unified model learns to draw.

Padding tokens do not affect valid ones and come out as zeros. `grids` (B, 2) int32 are the rows and
columns of the *features*, for the compressor and the decompressor alike.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.attention import attention, check_backend, padding_mask
from unicom_jax.core.grids import join_windows, split_windows, token_mask
from unicom_jax.core.layers import LayerNorm, Linear, Mlp, gelu_tanh, matmul
from unicom_jax.core.module import Module, Params, ParamSpec, Specs, zeros

NORM_EPS = 1e-5  # for UniTok's three outer norms (torch's default); GeGLU's inner norm uses 1e-6


class _PerToken(Module):
    """A projection that gives one latent per token. `PoolProjection` has a wider window."""

    window = 1  # tokens along each side of the image that share a latent


def _zero_padding(x: Float[Array, "B N C"], grids: Int[Array, "B 2"]) -> Float32[Array, "B N C"]:
    """Zeroes padding; uses `where`, as a product would let NaN through."""
    return jnp.where(token_mask(grids, x.shape[1])[..., None], x.astype(jnp.float32), 0.0)


@dataclasses.dataclass(frozen=True)
class SelfAttention(Module):
    """Non-causal attention with query and value biases and no key bias.

    Down (in > out): heads of width in / heads, averaged. Up: heads of width out / heads, joined.
    """

    in_dim: int
    out_dim: int
    heads: int
    backend: str = "dense"

    @property
    def inner(self) -> int:
        return max(self.in_dim, self.out_dim)

    @property
    def output(self) -> Linear:
        joined = self.inner // self.heads if self.in_dim > self.out_dim else self.out_dim
        return Linear(joined, self.out_dim, axes=(None, "embed"))

    def specs(self) -> Specs:
        return {
            "qkv": ParamSpec((self.in_dim, 3 * self.inner), ("embed", None)),
            "q_bias": ParamSpec((self.inner,), (None,), zeros),
            "v_bias": ParamSpec((self.inner,), (None,), zeros),
            "output": self.output.specs(),
        }

    def __call__(
        self, params: Params, x: Float[Array, "B N {self.in_dim}"], grids: Int[Array, "B 2"]
    ) -> Float32[Array, "B N {self.out_dim}"]:
        batch, tokens, _ = x.shape
        query, key, value = jnp.split(matmul(x, params["qkv"]), 3, axis=-1)
        query, value = query + params["q_bias"], value + params["v_bias"]
        query, key, value = (
            part.reshape(batch, tokens, self.heads, -1) for part in (query, key, value)
        )
        mask = padding_mask(grids[:, 0] * grids[:, 1], tokens)
        mixed = attention(query, key, value, mask, backend=self.backend)
        if self.in_dim > self.out_dim:
            mixed = mixed.mean(axis=2)
        else:
            mixed = mixed.reshape(batch, tokens, self.out_dim)
        return self.output(params["output"], mixed)


@dataclasses.dataclass(frozen=True)
class GeGlu(Module):
    """LayerNorm, then down(gelu(gate(x)) * up(x)), with biases."""

    dim: int
    hidden_dim: int

    @property
    def _parts(self) -> dict[str, Module]:
        return {
            "norm": LayerNorm(self.dim),
            "gate": Linear(self.dim, self.hidden_dim, axes=("embed", "mlp")),
            "up": Linear(self.dim, self.hidden_dim, axes=("embed", "mlp")),
            "down": Linear(self.hidden_dim, self.dim, axes=("mlp", "embed")),
        }

    def specs(self) -> Specs:
        return {name: part.specs() for name, part in self._parts.items()}

    def __call__(
        self, params: Params, x: Float[Array, "B N {self.dim}"]
    ) -> Float[Array, "B N {self.dim}"]:
        parts = self._parts
        x = parts["norm"](params["norm"], x)
        gated = gelu_tanh(parts["gate"](params["gate"], x)) * parts["up"](params["up"], x)
        return parts["down"](params["down"], gated)


@dataclasses.dataclass(frozen=True)
class AttentionProjection(_PerToken):
    """y = Linear(LN3 x) + Attn(LN1 x);  y += GeGLU(LN2 y).  Permutation-equivariant."""

    in_dim: int
    out_dim: int
    heads: int
    backend: str = "dense"

    def __post_init__(self) -> None:
        check_backend(self.backend)
        wide = max(self.in_dim, self.out_dim)
        if wide % self.heads:
            raise ValueError(
                f"{self.heads} heads do not divide the width {wide} of the attention compressor; "
                "choose heads that do"
            )

    @property
    def _parts(self) -> dict[str, Module]:
        return {
            "norm1": LayerNorm(self.in_dim, NORM_EPS),
            "attention": SelfAttention(self.in_dim, self.out_dim, self.heads, self.backend),
            "norm3": LayerNorm(self.in_dim, NORM_EPS),
            "linear": Linear(self.in_dim, self.out_dim, axes=("embed", None)),
            "norm2": LayerNorm(self.out_dim, NORM_EPS),
            "mlp": GeGlu(self.out_dim, 2 * self.out_dim),
        }

    def specs(self) -> Specs:
        return {name: part.specs() for name, part in self._parts.items()}

    def __call__(
        self, params: Params, x: Float[Array, "B N {self.in_dim}"], grids: Int[Array, "B 2"]
    ) -> Float32[Array, "B N {self.out_dim}"]:
        """0 at padding."""
        parts = self._parts
        x = _zero_padding(x, grids)
        straight = parts["linear"](params["linear"], parts["norm3"](params["norm3"], x))
        normed = parts["norm1"](params["norm1"], x)
        y = straight + parts["attention"](params["attention"], normed, grids)
        y = y + parts["mlp"](params["mlp"], parts["norm2"](params["norm2"], y))
        return _zero_padding(y, grids)


@dataclasses.dataclass(frozen=True)
class MlpProjection(_PerToken):
    """Linear -> GELU -> Linear per token, as wide inside as the wider end."""

    in_dim: int
    out_dim: int

    @property
    def mlp(self) -> Mlp:
        return Mlp(self.in_dim, max(self.in_dim, self.out_dim), self.out_dim)

    def specs(self) -> Specs:
        return {"mlp": self.mlp.specs()}

    def __call__(
        self, params: Params, x: Float[Array, "B N {self.in_dim}"], grids: Int[Array, "B 2"]
    ) -> Float32[Array, "B N {self.out_dim}"]:
        """0 at padding."""
        return _zero_padding(self.mlp(params["mlp"], _zero_padding(x, grids)), grids)


@dataclasses.dataclass(frozen=True)
class PoolProjection(Module):
    """Joins the tokens of each window in raster order and projects them to one latent."""

    in_dim: int
    out_dim: int
    window: int

    @property
    def linear(self) -> Linear:
        return Linear(self.window**2 * self.in_dim, self.out_dim, axes=("embed", None))

    def specs(self) -> Specs:
        return {"linear": self.linear.specs()}

    def __call__(
        self, params: Params, x: Float[Array, "B N {self.in_dim}"], grids: Int[Array, "B 2"]
    ) -> Float32[Array, "B N/{self.window}**2 {self.out_dim}"]:
        windows = join_windows(_zero_padding(x, grids), grids, self.window)
        pooled = self.linear(params["linear"], windows)
        return _zero_padding(pooled, grids // self.window)


@dataclasses.dataclass(frozen=True)
class UnpoolProjection(Module):
    """Projects each latent to the tokens of its window: the inverse layout of `PoolProjection`."""

    in_dim: int
    out_dim: int
    window: int

    @property
    def linear(self) -> Linear:
        return Linear(self.in_dim, self.window**2 * self.out_dim, axes=(None, "embed"))

    def specs(self) -> Specs:
        return {"linear": self.linear.specs()}

    def __call__(
        self, params: Params, x: Float[Array, "B n {self.in_dim}"], grids: Int[Array, "B 2"]
    ) -> Float32[Array, "B n*{self.window}**2 {self.out_dim}"]:
        windows = self.linear(params["linear"], _zero_padding(x, grids // self.window))
        return _zero_padding(split_windows(windows, grids, self.window), grids)


@dataclasses.dataclass(frozen=True)
class Identity(_PerToken):
    """The features are the latents."""

    def specs(self) -> Specs:
        return {}

    def __call__(
        self, params: Params, x: Float[Array, "B N F"], grids: Int[Array, "B 2"]
    ) -> Float32[Array, "B N F"]:
        """x, with 0 at padding."""
        del params
        return _zero_padding(x, grids)


KINDS = ("attention", "mlp", "pool", "identity")


def _attention_heads(feature_dim: int, latent_dim: int, heads: int | None) -> int:
    wide, narrow = max(feature_dim, latent_dim), min(feature_dim, latent_dim)
    if heads is None and wide % narrow:
        raise ValueError(
            f"the attention compressor takes {wide} / {narrow} heads, which is not an integer; "
            "choose a latent_dim that divides feature_dim or give heads"
        )
    return heads or wide // narrow


def _make(
    kind: str,
    feature_dim: int,
    latent_dim: int,
    heads: int | None,
    window: int | None,
    backend: str,
    down: bool,
) -> Module:
    ends = (feature_dim, latent_dim) if down else (latent_dim, feature_dim)
    if kind not in KINDS:
        raise ValueError(f"compressor {kind!r} is unknown; choose one of {KINDS}")
    if heads is not None and kind != "attention":
        raise ValueError(
            f'heads={heads} belongs to compressor "attention", not to {kind!r}; drop it'
        )
    if (window is None) == (kind == "pool"):
        raise ValueError(
            f'window={window} with compressor {kind!r}: only "pool" has one, and needs it'
        )
    if kind == "attention":
        heads = _attention_heads(feature_dim, latent_dim, heads)
        return AttentionProjection(*ends, heads, backend)
    if kind == "mlp":
        return MlpProjection(*ends)
    if kind == "pool":
        return PoolProjection(*ends, window) if down else UnpoolProjection(*ends, window)
    if feature_dim != latent_dim:
        raise ValueError(
            f'compressor "identity" keeps the width: set latent_dim={feature_dim}, not {latent_dim}'
        )
    return Identity()


def make_compressor(
    kind: str,
    feature_dim: int,
    latent_dim: int,
    *,
    heads: int | None = None,
    window: int | None = None,
    backend: str = "dense",
) -> Module:
    """(params, features (B, N, F), grids (B, 2)) -> latents (B, n, d) fp32.

    Args:
      kind: "attention", "mlp", "pool" or "identity".
      heads: only for "attention"; None: feature_dim / latent_dim, as in the paper.
      window: only for "pool", where n = N / window²; the other kinds have n = N and `.window` 1.
      backend: only for "attention"; see `core.attention`. "dense" holds N x N fp32 scores per head.
    """
    return _make(kind, feature_dim, latent_dim, heads, window, backend, down=True)


def make_decompressor(
    kind: str,
    feature_dim: int,
    latent_dim: int,
    *,
    heads: int | None = None,
    window: int | None = None,
    backend: str = "dense",
) -> Module:
    """(params, latents (B, n, d), grids (B, 2)) -> features (B, N, F) fp32.

    Takes the arguments of `make_compressor` in the same order, and the same grids of the features.
    """
    return _make(kind, feature_dim, latent_dim, heads, window, backend, down=False)
