"""Heads that read a velocity from the transformer's hidden states. Each starts at zero velocity."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from unicom_jax.core.layers import Linear, Mlp, TimeEmbedding, gelu_tanh
from unicom_jax.core.modulation import Modulation, gated_sum, modulated_norm
from unicom_jax.core.module import Module, Params, Specs, stack_specs, zeros
from unicom_jax.core.remat import REMAT_POLICIES, check_remat
from unicom_jax.core.scopes import in_module


def _output(width: int, latent_dim: int) -> Linear:
    return Linear(width, latent_dim, axes=("embed", "latent"), init_kernel=zeros)


@dataclasses.dataclass(frozen=True)
class LinearHead(Module):
    """One zero-initialised projection (BAGEL, the paper's default).

    The hidden states already contain the time, which was added to the latents at the input.
    """

    width: int
    latent_dim: int

    def specs(self) -> Specs:
        return {"output": _output(self.width, self.latent_dim).specs()}

    @in_module("head")
    def __call__(
        self,
        params: Params,
        hidden: Float[Array, "*B {self.width}"],
        time: Float[Array, " ..."],
    ) -> Float32[Array, "*B {self.latent_dim}"]:
        """The velocity; the times are not needed."""
        del time
        return _output(self.width, self.latent_dim)(params["output"], hidden.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class MlpHead(Module):
    """Linear -> GELU -> zero-initialised Linear. Its input contains the time, as `LinearHead`'s."""

    width: int
    latent_dim: int
    hidden_dim: int

    @property
    def up(self) -> Linear:
        return Linear(self.width, self.hidden_dim, axes=("embed", "mlp"))

    def specs(self) -> Specs:
        output = _output(self.hidden_dim, self.latent_dim)
        return {"up": self.up.specs(), "output": output.specs()}

    @in_module("head")
    def __call__(
        self,
        params: Params,
        hidden: Float[Array, "*B {self.width}"],
        time: Float[Array, " ..."],
    ) -> Float32[Array, "*B {self.latent_dim}"]:
        """The velocity; the times are not needed."""
        del time
        inner = gelu_tanh(self.up(params["up"], hidden)).astype(jnp.float32)
        return _output(self.hidden_dim, self.latent_dim)(params["output"], inner)


@dataclasses.dataclass(frozen=True)
class AdaLnHead(Module):
    """Residual MLP blocks modulated by time, as in the diffusion head of MAR (Li et al. 2024).

    MAR's head denoises a latent given a condition; here the hidden state already holds both.
    `remat`: what a block keeps for the backward pass, a key of `core.remat.REMAT_POLICIES`.
    """

    width: int
    latent_dim: int
    hidden_dim: int
    depth: int
    remat: str = "none"

    def __post_init__(self) -> None:
        check_remat(self.remat)

    @property
    def _block(self) -> dict[str, Module]:
        width = self.hidden_dim
        return {"mlp": Mlp(width, width, width, "silu"), "modulation": Modulation(width, width, 3)}

    @property
    def _ends(self) -> dict[str, Module]:
        width = self.hidden_dim
        return {
            "input": Linear(self.width, width, axes=("embed", None)),
            "time": TimeEmbedding(width),
            "modulation": Modulation(width, width, 2),
            "output": _output(width, self.latent_dim),
        }

    def specs(self) -> Specs:
        specs = {name: module.specs() for name, module in self._ends.items()}
        block = {name: module.specs() for name, module in self._block.items()}
        return specs | {"blocks": stack_specs(block, self.depth)}

    @in_module("head")
    def __call__(
        self,
        params: Params,
        hidden: Float[Array, "*B {self.width}"],
        time: Float[Array, " ..."],
    ) -> Float32[Array, "*B {self.latent_dim}"]:
        """The velocity; `time` has leading axes of `hidden`."""
        ends, block = self._ends, self._block
        time = time.reshape(time.shape + (1,) * (hidden.ndim - 1 - time.ndim))
        condition = ends["time"](params["time"], time)

        def step(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
            scale, shift, gate = block["modulation"](weights["modulation"], condition)
            update = block["mlp"](weights["mlp"], modulated_norm(x, scale, shift))
            return gated_sum(x, gate, update), None

        x = ends["input"](params["input"], hidden)
        x, _ = jax.lax.scan(REMAT_POLICIES[self.remat](step), x, params["blocks"])
        scale, shift = ends["modulation"](params["modulation"], condition)
        x = modulated_norm(x.astype(jnp.float32), scale, shift)
        return ends["output"](params["output"], x)


def make_flow_head(
    kind: str,
    width: int,
    latent_dim: int,
    *,
    hidden_dim: int | None = None,
    depth: int = 3,
    remat: str = "none",
) -> Module:
    """The head named `kind` from hidden states of `width` to velocities of `latent_dim`.

    Args:
      kind: "linear", "mlp" or "adaln".
      hidden_dim: inner width of "mlp" and "adaln"; None: `width`.
      depth, remat: residual blocks of "adaln", and what they keep for the backward pass.
    """
    inner = hidden_dim or width
    heads = {
        "linear": lambda: LinearHead(width, latent_dim),
        "mlp": lambda: MlpHead(width, latent_dim, inner),
        "adaln": lambda: AdaLnHead(width, latent_dim, inner, depth, remat),
    }
    if kind not in heads:
        raise ValueError(f"flow head {kind!r} is unknown; choose one of {sorted(heads)}")
    return heads[kind]()
