"""Transformer blocks over one image's tokens, steered by time: the stages of Cheers' flow head.

    x ── RMSNorm ─ · (1 + scale) + shift ─ attention within the image ─ · gate ─(+)
      ── RMSNorm ─ · (1 + scale) + shift ─ SwiGLU ─────────────────────── · gate ─(+)   × depth
      ── RMSNorm ─ · (1 + scale) + shift ─ Linear

AdaLN-Zero (DiT: Peebles & Xie 2023) with learned RMSNorms, grouped-query attention without biases
and rotary positions in raster order (Cheers, arXiv 2603.12793).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.activations import PICTURES, place
from unicom_jax.core.attention import attention, check_backend, padding_mask
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.layers import Linear, RMSNorm, SwiGlu
from unicom_jax.core.modulation import Modulation, gated_sum, modulate
from unicom_jax.core.module import Module, Params, Specs, fan_in, stack_specs
from unicom_jax.core.positions import Turns, axial_rope
from unicom_jax.core.remat import REMAT_POLICIES, check_remat
from unicom_jax.models.transformer import SelfAttention

MLP_RATIO = 4  # ratio of the SwiGLU's hidden channels to the stream's


@dataclasses.dataclass(frozen=True)
class ModulatedBlock(Module):
    """One block. It starts as the identity: its modulation is 0."""

    width: int
    heads: int
    kv_heads: int
    backend: str = "dense"

    @property
    def attention(self) -> SelfAttention:
        head_dim = self.width // self.heads
        return SelfAttention(
            self.width, self.heads, self.kv_heads, head_dim, qkv_bias=False, qk_norm=False,
            norm_eps=1e-6, backend=self.backend, block=None,
        )  # fmt: skip

    @property
    def _parts(self) -> dict[str, Module]:
        return {
            "modulation": Modulation(self.width, self.width, 6),
            "attention_norm": RMSNorm(self.width),
            "attention": self.attention,
            "mlp_norm": RMSNorm(self.width),
            "mlp": SwiGlu(self.width, MLP_RATIO * self.width),
        }

    def specs(self) -> Specs:
        return {name: part.specs() for name, part in self._parts.items()}

    def _attend(
        self, params: Params, x: Float[Array, "B N W"], turns: Turns, mask: MaskIntervals
    ) -> Float[Array, "B N W"]:
        # `SelfAttention.attend` is for packed rows and not used: a picture stays on one device.
        query, key, value = self.attention.project(params, x, *turns)
        mixed = attention(query, key, value, mask, backend=self.backend)
        return self.attention.out(params["out"], mixed.reshape(x.shape))

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B N W"],
        time: Float32[Array, "B 1 W"],
        turns: Turns,
        mask: MaskIntervals,
    ) -> Float[Array, "B N W"]:
        """`time` is embedded; `mask` hides padding."""
        parts = self._parts
        steering = parts["modulation"](params["modulation"], time)
        shift1, scale1, gate1, shift2, scale2, gate2 = steering
        y = modulate(parts["attention_norm"], params["attention_norm"], x, scale1, shift1)
        x = gated_sum(x, gate1, self._attend(params["attention"], y.astype(x.dtype), turns, mask))
        y = modulate(parts["mlp_norm"], params["mlp_norm"], x, scale2, shift2)
        return gated_sum(x, gate2, parts["mlp"](params["mlp"], y.astype(x.dtype)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModulatedStack(Module):
    """`depth` blocks and a final layer to `out_dim`, which does not start at zero.

    Attributes:
      heads, kv_heads: heads of queries, and of keys and values; `kv_heads` divides `heads`, and
        2 · heads divides `width`.
      rope_theta: base of the rotary frequencies.
      remat: what a block keeps for the backward pass, a key of `core.remat.REMAT_POLICIES`.
      attention_backend: as in `core.attention`.
    """

    width: int
    out_dim: int
    depth: int
    heads: int
    kv_heads: int
    rope_theta: float = 10_000.0
    remat: str = "none"
    attention_backend: str = "dense"

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                f"width={self.width}, heads={self.heads}, kv_heads={self.kv_heads}: make width a "
                "multiple of 2 * heads and heads a multiple of kv_heads"
            )
        check_remat(self.remat)
        check_backend(self.attention_backend)

    @property
    def block(self) -> ModulatedBlock:
        return ModulatedBlock(self.width, self.heads, self.kv_heads, self.attention_backend)

    @property
    def _final(self) -> dict[str, Module]:
        return {
            "norm": RMSNorm(self.width),
            "modulation": Modulation(self.width, self.width, 2, fan_in()),
            "output": Linear(self.width, self.out_dim, axes=("embed", None)),
        }

    def specs(self) -> Specs:
        final = {name: part.specs() for name, part in self._final.items()}
        return {"blocks": stack_specs(self.block.specs(), self.depth), **final}

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B N W"],
        time: Float32[Array, "B 1 W"],
        lengths: Int[Array, " B"],
        positions: Int[Array, "*rows N"],
        dtype: Any = jnp.float32,
    ) -> Float[Array, "B N {self.out_dim}"]:
        """Outputs of the final layer, in `dtype`.

        Args:
          time: embedded time.
          lengths: number of tokens of each image; later tokens are padding that nobody sees.
          positions: rotary position of each token, for all images or for each.
        """
        turns = axial_rope(
            jnp.broadcast_to(positions, x.shape[:2])[..., None],
            (self.width // self.heads,),
            self.rope_theta,
        )
        mask = padding_mask(lengths, x.shape[1])

        def step(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
            return self.block(weights, place(x, PICTURES), time, turns, mask), None

        x, _ = jax.lax.scan(REMAT_POLICIES[self.remat](step), x, params["blocks"])
        final = self._final
        shift, scale = final["modulation"](params["modulation"], time)
        y = modulate(final["norm"], params["norm"], x, scale, shift)
        return final["output"](params["output"], y.astype(dtype))
