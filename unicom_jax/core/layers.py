"""The small layers that everything is built from.

Compute follows the dtype of the activations; norms run in fp32. Products of fp32 activations are
fp32 on every platform (`core.precision`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Real

from unicom_jax.core.activations import ROWS, SLOTS, MeshAxes, place
from unicom_jax.core.gradients import gradient_dtype, needs_rule
from unicom_jax.core.lookup import look_up
from unicom_jax.core.module import Initializer, Module, Params, ParamSpec, Specs, fan_in, normal
from unicom_jax.core.module import ones as ones_init
from unicom_jax.core.module import zeros as zeros_init
from unicom_jax.core.precision import precision_of

gelu_tanh = partial(jax.nn.gelu, approximate=True)
gelu_exact = partial(jax.nn.gelu, approximate=False)
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": gelu_tanh,
    "gelu": gelu_exact,
    "silu": jax.nn.silu,
}


def matmul(
    x: Float[Array, "*B in"], kernel: Float[Array, "in out"], out_dtype: Any = None
) -> Float[Array, "*B out"]:
    """x times kernel, computed in the dtype of x and accumulated in `out_dtype`.

    The values and gradients are those of `x @ kernel`. Where XLA compiles for CPU, a gradient rule
    of our own changes the order of the factors in the weight gradient, and nothing else. JAX writes
    that gradient as (gradient^T x)^T, which XLA's CPU compiler turns into a product with slow
    strides; written as x^T gradient, a train step takes three quarters of the time there. `jax.jvp`
    does not pass through such a rule; `core.gradients.forward_mode` leaves it out. On other
    platforms there is no rule, unless weight gradients are to leave their products in fp32
    (`core.gradients`) or `out_dtype` differs from the dtype of x, as for logits.

    The kernel is kept for the backward pass as it is, not in its cast form, so `jax.lax.scan` over
    layers saves no second copy of the weights.
    """
    out_dtype = jnp.dtype(out_dtype or x.dtype)
    product = _matmul if needs_rule(out_dtype == x.dtype) else _product
    return product(x, kernel, out_dtype)


def _product(x: jax.Array, kernel: jax.Array, out_dtype: jnp.dtype) -> jax.Array:
    return jnp.matmul(
        x,
        kernel.astype(x.dtype),
        precision=precision_of(x.dtype),
        preferred_element_type=out_dtype,
    )


_matmul = jax.custom_vjp(_product, nondiff_argnums=(2,))


def _matmul_forward(x: jax.Array, kernel: jax.Array, out_dtype: jnp.dtype):
    # `_product`, not `_matmul`: remat policies that keep products look for the bare product.
    return _product(x, kernel, out_dtype), (x, kernel)


def _matmul_backward(
    out_dtype: jnp.dtype, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
):
    x, kernel = residuals
    gradient = gradient.astype(x.dtype)
    rows = tuple(range(x.ndim - 1))
    kernel_gradient = jax.lax.dot_general(
        x,
        gradient,
        ((rows, rows), ((), ())),
        precision=precision_of(x.dtype),
        preferred_element_type=gradient_dtype(x.dtype),
    )
    # Contracted without a transpose: a transposed kernel would be gathered over devices again.
    x_gradient = jax.lax.dot_general(
        gradient,
        kernel.astype(x.dtype),
        (((x.ndim - 1,), (1,)), ((), ())),
        precision=precision_of(x.dtype),
    )
    return x_gradient, kernel_gradient.astype(kernel.dtype)


_matmul.defvjp(_matmul_forward, _matmul_backward)


ADAPTER = "lora"  # key of a layer's low-rank change, next to its kernel; see `core.lora`


def low_rank(adapter: Params, x: Float[Array, "*B in"]) -> Float[Array, "*B out"]:
    """scale · (x a) b, with the scale applied in fp32 to the few numbers of x a."""
    inner = matmul(x, adapter["a"], jnp.float32) * adapter["scale"]
    return matmul(inner.astype(x.dtype), adapter["b"])


@dataclasses.dataclass(frozen=True)
class Linear(Module):
    """y = x @ kernel + bias. Weights: kernel (in, out), bias (out,), optionally an `ADAPTER`."""

    in_dim: int
    out_dim: int
    bias: bool = True
    axes: tuple[str | None, str | None] = (None, None)
    init_kernel: Initializer = dataclasses.field(default_factory=fan_in, repr=False)

    def specs(self) -> Specs:
        specs = {"kernel": ParamSpec((self.in_dim, self.out_dim), self.axes, self.init_kernel)}
        if self.bias:
            specs["bias"] = ParamSpec((self.out_dim,), (self.axes[1],), zeros_init)
        return specs

    def __call__(
        self, params: Params, x: Float[Array, "*B {self.in_dim}"]
    ) -> Float[Array, "*B {self.out_dim}"]:
        y = matmul(x, params["kernel"])
        if ADAPTER in params:
            y = y + low_rank(params[ADAPTER], x)
        return y + params["bias"].astype(x.dtype) if self.bias else y


@dataclasses.dataclass(frozen=True)
class RMSNorm(Module):
    """x / rms(x) * scale over the last axis, computed in fp32."""

    dim: int
    eps: float = 1e-6

    def specs(self) -> Specs:
        return {"scale": ParamSpec((self.dim,), (None,), ones_init)}

    def __call__(
        self, params: Params, x: Float[Array, "*B {self.dim}"]
    ) -> Float[Array, "*B {self.dim}"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * params["scale"]).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class LayerNorm(Module):
    """(x - mean) / std * scale + bias over the last axis, in fp32; `affine=False`: no weights."""

    dim: int
    eps: float = 1e-6
    affine: bool = True

    def specs(self) -> Specs:
        if not self.affine:
            return {}
        return {
            "scale": ParamSpec((self.dim,), (None,), ones_init),
            "bias": ParamSpec((self.dim,), (None,), zeros_init),
        }

    def __call__(
        self, params: Params, x: Float[Array, "*B {self.dim}"]
    ) -> Float[Array, "*B {self.dim}"]:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        if self.affine:
            y = y * params["scale"] + params["bias"]
        return y.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Mlp(Module):
    """Linear -> activation -> Linear."""

    in_dim: int
    hidden_dim: int
    out_dim: int
    activation: str = "gelu_tanh"

    @property
    def up(self) -> Linear:
        return Linear(self.in_dim, self.hidden_dim, axes=("embed", "mlp"))

    @property
    def down(self) -> Linear:
        return Linear(self.hidden_dim, self.out_dim, axes=("mlp", "embed"))

    def specs(self) -> Specs:
        return {"up": self.up.specs(), "down": self.down.specs()}

    def __call__(
        self, params: Params, x: Float[Array, "*B {self.in_dim}"]
    ) -> Float[Array, "*B {self.out_dim}"]:
        hidden = ACTIVATIONS[self.activation](self.up(params["up"], x))
        return self.down(params["down"], hidden)


@dataclasses.dataclass(frozen=True)
class SwiGlu(Module):
    """down(silu(gate(x)) * up(x)), by default without biases (Shazeer 2020, as in Qwen2)."""

    dim: int
    hidden_dim: int
    bias: bool = False

    @property
    def wide(self) -> Linear:
        return Linear(self.dim, self.hidden_dim, self.bias, axes=("embed", "mlp"))

    @property
    def down(self) -> Linear:
        return Linear(self.hidden_dim, self.dim, self.bias, axes=("mlp", "embed"))

    def specs(self) -> Specs:
        return {"gate": self.wide.specs(), "up": self.wide.specs(), "down": self.down.specs()}

    def __call__(
        self, params: Params, x: Float[Array, "*B {self.dim}"]
    ) -> Float[Array, "*B {self.dim}"]:
        hidden = jax.nn.silu(self.wide(params["gate"], x)) * self.wide(params["up"], x)
        return self.down(params["down"], hidden)


@dataclasses.dataclass(frozen=True)
class Embedding(Module):
    """A table of `count` vectors; `attend` scores hidden states against it (a tied head).

    `stddev`: standard deviation of the initial vectors.
    """

    count: int
    dim: int
    stddev: float = 0.02

    def specs(self) -> Specs:
        init = normal(self.stddev)
        return {"table": ParamSpec((self.count, self.dim), ("vocab", "embed"), init)}

    def __call__(
        self,
        params: Params,
        ids: Int[Array, "*B"],
        dtype: Any = None,
        axes: tuple[MeshAxes, ...] = (ROWS, SLOTS),
    ) -> Float[Array, "*B {self.dim}"]:
        """The vectors of `ids`, in `dtype` (by default the table's).

        `axes`: mesh axes that split the dimensions of `ids`; they split those of the vectors too.
        """
        table = params["table"]
        return look_up(table, place(ids, *axes), jnp.dtype(dtype or table.dtype), axes)

    def attend(
        self, params: Params, x: Float[Array, "*B {self.dim}"]
    ) -> Float32[Array, "*B {self.count}"]:
        """Scores of x against every vector."""
        return matmul(x, params["table"].T, jnp.float32)


def sinusoidal(
    time: Float[Array, "*B"], dim: int, max_period: float = 10_000.0, scale: float = 1000.0
) -> Float32[Array, "*B {dim}"]:
    """[cos, sin] features of a time in [0, 1], times `scale`: 1000 as in DiT."""
    # Exponents are fp32, as in the libraries of the published weights. The host computes exp, since
    # XLA's differs in the last bit, which would show in angles of thousands (FLUX's guidance).
    exponents = np.float32(-math.log(max_period)) * np.arange(dim // 2, dtype=np.float32)
    exponents = exponents / np.float32(dim // 2)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = scale * time.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def place_embedding(
    places: Real[Array, "*B 2"], dim: int, max_period: float = 10_000.0
) -> Float32[Array, "*B {dim}"]:
    """Fixed sines and cosines of (row, column); `dim` is a multiple of 4.

    Half of the channels encode the row, half the column, as in MoCo v3's ViTs and for BAGEL's
    latents.
    """
    if dim % 4:
        raise ValueError(f"a place embedding needs a width that is a multiple of 4, not {dim}")
    frequencies = max_period ** (-jnp.arange(dim // 4, dtype=jnp.float32) / (dim // 4))
    angles = places.astype(jnp.float32)[..., None] * frequencies  # (..., 2, dim / 4)
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return waves.reshape(*places.shape[:-1], dim)


@dataclasses.dataclass(frozen=True)
class TimeEmbedding(Module):
    """Flow time to a vector: 256 sinusoids of time · scale, then a two-layer SiLU MLP, in fp32."""

    dim: int
    frequencies: int = 256
    scale: float = 1000.0

    @property
    def mlp(self) -> Mlp:
        return Mlp(self.frequencies, self.dim, self.dim, activation="silu")

    def specs(self) -> Specs:
        return self.mlp.specs()

    def __call__(self, params: Params, time: Float[Array, "*B"]) -> Float32[Array, "*B {self.dim}"]:
        return self.mlp(params, sinusoidal(time, self.frequencies, scale=self.scale))
