"""Pixel decoder: a diffusion transformer that paints image patches from per-token features.

Patch (row, column) is conditioned on the feature of the same place, so no cross-attention is
needed. Time enters through AdaLN-zero (DiT: Peebles & Xie 2023), places through 2-D RoPE.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core import flow
from unicom_jax.core.activations import PICTURES, place
from unicom_jax.core.attention import attention, check_backend, padding_mask
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.grids import token_mask, token_places
from unicom_jax.core.layers import Linear, Mlp, RMSNorm, SwiGlu, TimeEmbedding
from unicom_jax.core.losses import LossTerms
from unicom_jax.core.modulation import Modulation, gated_sum, modulated_norm
from unicom_jax.core.module import Module, Params, Specs, stack_specs, zeros
from unicom_jax.core.positions import Turns, apply_rope, rope
from unicom_jax.core.scopes import in_module
from unicom_jax.models.flow_decoder import FlowDecoder, masked_loss

PREDICTIONS = ("data", "velocity")


@dataclasses.dataclass(frozen=True)
class DecoderBlock(Module):
    """Attention over the image and a SwiGLU MLP, each shifted, scaled and gated by time."""

    width: int
    heads: int
    mlp_dim: int
    attention_backend: str = "dense"

    @property
    def _parts(self) -> dict[str, Module]:
        width, head_dim = self.width, self.width // self.heads
        return {
            "modulation": Modulation(width, width, 6),
            "qkv": Linear(width, 3 * width, bias=False, axes=("embed", "heads")),
            "query_norm": RMSNorm(head_dim),
            "key_norm": RMSNorm(head_dim),
            "output": Linear(width, width, axes=("heads", "embed")),
            "mlp": SwiGlu(width, self.mlp_dim),
        }

    def specs(self) -> Specs:
        return {name: part.specs() for name, part in self._parts.items()}

    def _attend(
        self, params: Params, x: Float[Array, "B N W"], turns: Turns, mask: MaskIntervals
    ) -> Float[Array, "B N W"]:
        parts = self._parts
        # Heads come before (query, key, value), so a kernel sharded by heads stays sharded.
        qkv = parts["qkv"](params["qkv"], x).reshape(*x.shape[:2], self.heads, -1)
        query, key, value = jnp.split(qkv, 3, axis=-1)
        query = apply_rope(parts["query_norm"](params["query_norm"], query), *turns)
        key = apply_rope(parts["key_norm"](params["key_norm"], key), *turns)
        mixed = attention(query, key, value, mask, backend=self.attention_backend)
        return parts["output"](params["output"], mixed.reshape(x.shape))

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
        scale1, shift1, gate1, scale2, shift2, gate2 = steering
        mixed = self._attend(params, modulated_norm(x, scale1, shift1), turns, mask)
        x = gated_sum(x, gate1, mixed)
        out = parts["mlp"](params["mlp"], modulated_norm(x, scale2, shift2))
        return gated_sum(x, gate2, out)


@dataclasses.dataclass(frozen=True)
class PixelDecoder(FlowDecoder):
    """DiT over the patches of an image, conditioned token by token.

    Attributes:
      channels: numbers in a patch, C.
      feature_dim: width of the condition.
      width, depth, heads, mlp_dim: transformer sizes; heads divide width into even head widths.
      rope_theta: base of the rotary frequencies; 100 spreads them over grids of up to 64 places.
      prediction: what the network predicts. "data" (x̂, from which v = (x̂ - x_t) / (1 - t)) suits
        pixel patches, which have more channels than degrees of freedom ("JiT": Li & He 2025);
        "velocity" suits autoencoder latents.
      time_floor: lower bound of 1 - t in the loss of "data" prediction, which bounds its weight
        near t = 1.
      attention_backend: as in `core.attention`.
      remat: recompute each block in the backward pass instead of keeping its activations.
      compute_dtype: dtype of the blocks' activations; "": that of the condition.

    The time embedding, modulation, the last layer, predictions, losses and samples are fp32.
    """

    channels: int
    feature_dim: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    rope_theta: float = 100.0
    prediction: str = "data"
    time_floor: float = 0.05
    attention_backend: str = "dense"
    remat: bool = False
    compute_dtype: str = ""

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction {self.prediction!r} is unknown; use one of {PREDICTIONS}")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"pixel decoder of width {self.width} and {self.heads} heads has no even head "
                "width; make width a multiple of 2 * heads"
            )
        check_backend(self.attention_backend)

    @property
    def _ends(self) -> dict[str, Module]:
        width = self.width
        return {
            "patch": Linear(self.channels, width, axes=(None, "embed")),
            "condition": Mlp(self.feature_dim, width, width, activation="silu"),
            "time": TimeEmbedding(width),
            "modulation": Modulation(width, width, 2),
            "output": Linear(width, self.channels, axes=("embed", None), init_kernel=zeros),
        }

    @property
    def block(self) -> DecoderBlock:
        return DecoderBlock(self.width, self.heads, self.mlp_dim, self.attention_backend)

    def specs(self) -> Specs:
        ends = {name: part.specs() for name, part in self._ends.items()}
        return ends | {"blocks": stack_specs(self.block.specs(), self.depth)}

    @in_module("flow_decoder")
    def __call__(
        self,
        params: Params,
        noisy: Float[Array, "B N C"],
        time: Float[Array, " B"],
        condition: Float[Array, "B N F"],
        grids: Int[Array, "B 2"],
    ) -> Float32[Array, "B N C"]:
        """Clean patches or velocity; see `FlowDecoder`."""
        ends, tokens = self._ends, noisy.shape[1]
        condition = condition.astype(self.compute_dtype or condition.dtype)
        turns = rope(token_places(grids, tokens), self.width // self.heads, self.rope_theta)
        mask = padding_mask(grids[:, 0] * grids[:, 1], tokens)
        steering = ends["time"](params["time"], time[:, None])
        x = ends["patch"](params["patch"], noisy.astype(condition.dtype))
        x = x + ends["condition"](params["condition"], condition)

        def step(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
            return self.block(weights, place(x, PICTURES), steering, turns, mask), None

        x, _ = jax.lax.scan(jax.checkpoint(step) if self.remat else step, x, params["blocks"])
        scale, shift = ends["modulation"](params["modulation"], steering)
        out = ends["output"](params["output"], modulated_norm(x.astype(jnp.float32), scale, shift))
        return jnp.where(token_mask(grids, tokens)[..., None], out, 0.0)

    def velocity(
        self,
        params: Params,
        noisy: Float[Array, "B N C"],
        time: Float[Array, " B"],
        condition: Float[Array, "B N F"],
        grids: Int[Array, "B 2"],
    ) -> Float32[Array, "B N C"]:
        """See `FlowDecoder`."""
        prediction = self(params, noisy, time, condition, grids)
        if self.prediction == "velocity":
            return prediction
        # A negligible floor: a step to t = 1 then ends at x̂, with no noise left over.
        return flow.data_to_velocity(prediction, noisy, time, floor=1e-6)

    def loss(
        self,
        params: Params,
        tokens: Float[Array, "B N C"],
        noise: Float[Array, "B N C"],
        time: Float[Array, " B"],
        condition: Float[Array, "B N F"],
        grids: Int[Array, "B 2"],
    ) -> tuple[LossTerms, Float32[Array, "B N C"]]:
        """See `FlowDecoder`; "data" prediction is weighted by 1 / max(1 - t, time_floor)²."""
        if self.prediction == "velocity":
            return super().loss(params, tokens, noise, time, condition, grids)
        noisy = flow.interpolate(tokens, noise, time)
        clean = self(params, noisy, time, condition, grids)
        speed, target = flow.floored_velocities(clean, tokens, noisy, time, self.time_floor)
        return masked_loss(speed, target, clean, time, grids)
