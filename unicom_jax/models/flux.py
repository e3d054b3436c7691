"""FLUX.1's transformer (Black Forest Labs 2024), as diffusers' FluxTransformer2DModel computes it.

    context ─ Linear ─┐                     ┌ context ┐
                      ├ double blocks × 19 ─┤         ├ joined ─ single blocks × 38 ─ image ─ out
    image ─── Linear ─┘                     └ image ──┘
    time, guidance, pooled text ─ three MLPs ─ (+) ─ steers every block (AdaLN)

Double blocks have two streams with separate weights and one attention over both (MM-DiT: Esser et
al. 2024); single blocks run attention and MLP side by side over the joined sequence.

This file keeps FLUX's convention: sigma = 1 is noise, sigma = 0 is data, and the output is
d image / d sigma = noise - data. `models/flux_decoder.py` converts it to ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Real

from unicom_jax.core.activations import PICTURES, place
from unicom_jax.core.attention import check_backend
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.layers import Linear, Mlp, TimeEmbedding, gelu_tanh
from unicom_jax.core.modulation import Modulation, gated_sum, modulated_norm
from unicom_jax.core.module import Module, Params, Specs, stack_specs, zeros
from unicom_jax.core.positions import Turns, apply_paired_rope, axial_rope
from unicom_jax.core.remat import REMAT_POLICIES, check_remat
from unicom_jax.models.streams import (
    MLP_RATIO,
    Heads,
    Projections,
    Stream,
    attend,
    attend_jointly,
)

ROPE_THETA = 10_000.0


def _attend(
    heads: Heads, turns: Turns, mask: MaskIntervals | None, backend: str
) -> Float[Array, "B S H*D"]:
    """Attention with rotated queries and keys."""
    query, key, value = heads
    query, key = apply_paired_rope(query, *turns), apply_paired_rope(key, *turns)
    return attend((query, key, value), mask, backend)


@dataclasses.dataclass(frozen=True)
class DoubleBlock(Module):
    """Two streams with separate weights and one attention over [context | image]."""

    heads: int
    head_dim: int
    attention_backend: str = "dense"

    @property
    def stream(self) -> Stream:
        return Stream(self.heads, self.head_dim)

    def specs(self) -> Specs:
        return {"context": self.stream.specs(), "image": self.stream.specs()}

    def __call__(
        self,
        params: Params,
        context: Float[Array, "B T W"],
        image: Float[Array, "B N W"],
        steering: Float32[Array, "B 1 W"],
        turns: Turns,
        mask: MaskIntervals | None,
    ) -> tuple[Float[Array, "B T W"], Float[Array, "B N W"]]:
        """`turns` and `mask` describe the joint sequence [context | image] of S = T + N slots."""
        stream, weights = self.stream, (params["context"], params["image"])
        steers = [stream.steer(part, steering) for part in weights]
        sides = list(zip(weights, (context, image), steers, strict=True))
        mixed = attend_jointly(
            [stream.project(part, x, steer) for part, x, steer in sides],
            lambda heads: _attend(heads, turns, mask, self.attention_backend),
        )
        context, image = (
            stream.finish(part, x, seen, steer)
            for (part, x, steer), seen in zip(sides, mixed, strict=True)
        )
        return context, image


@dataclasses.dataclass(frozen=True)
class SingleBlock(Module):
    """Attention and MLP side by side on one normed input, projected back together.

    The output projection has two parts, one per branch, so that each is sharded like its branch.
    """

    heads: int
    head_dim: int
    attention_backend: str = "dense"

    @property
    def _parts(self) -> dict[str, Module]:
        width = self.heads * self.head_dim
        hidden = MLP_RATIO * width
        return {
            "modulation": Modulation(width, width, 3),
            "attention": Projections(self.heads, self.head_dim),
            "mlp": Linear(width, hidden, axes=("embed", "mlp")),
            "attention_output": Linear(width, width, axes=("heads", "embed")),
            "mlp_output": Linear(hidden, width, bias=False, axes=("mlp", "embed")),
        }

    def specs(self) -> Specs:
        return {name: part.specs() for name, part in self._parts.items()}

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B S W"],
        steering: Float32[Array, "B 1 W"],
        turns: Turns,
        mask: MaskIntervals | None,
    ) -> Float[Array, "B S W"]:
        parts = self._parts
        shift, scale, gate = parts["modulation"](params["modulation"], steering)
        normed = modulated_norm(x, scale, shift)
        heads = parts["attention"](params["attention"], normed)
        mixed = _attend(heads, turns, mask, self.attention_backend)
        hidden = gelu_tanh(parts["mlp"](params["mlp"], normed))
        out = parts["attention_output"](params["attention_output"], mixed)
        out = out + parts["mlp_output"](params["mlp_output"], hidden)
        return gated_sum(x, gate, out)


@dataclasses.dataclass(frozen=True)
class FluxTransformer(Module):
    """FLUX.1 over packed latents. The defaults are the sizes of FLUX.1-dev.

    Attributes:
      channels, out_channels: channels of an input and of an output token.
      double_depth, single_depth: number of blocks of each kind.
      heads, head_dim: the width is their product.
      context_dim: width of the context tokens (FLUX: T5's).
      pooled_dim: width of the pooled vector (FLUX: CLIP's).
      guidance_embeds: whether the network takes the guidance scale ("dev" does, "schnell" not).
      rope_dims: channels of a head that rotate with each axis of the places.
      remat: what a block keeps for the backward pass, a key of `core.remat.REMAT_POLICIES`.
      attention_backend: as in `core.attention`.
    """

    channels: int = 64
    out_channels: int = 64
    double_depth: int = 19
    single_depth: int = 38
    heads: int = 24
    head_dim: int = 128
    context_dim: int = 4096
    pooled_dim: int = 768
    guidance_embeds: bool = True
    rope_dims: tuple[int, ...] = (16, 56, 56)
    remat: str = "none"
    attention_backend: str = "dense"

    def __post_init__(self) -> None:
        check_backend(self.attention_backend)
        check_remat(self.remat)
        if sum(self.rope_dims) != self.head_dim or any(dim % 2 for dim in self.rope_dims):
            raise ValueError(
                f"rope_dims {self.rope_dims} do not share out a head_dim of {self.head_dim}; give "
                "even numbers that sum to it"
            )

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def double_block(self) -> DoubleBlock:
        return DoubleBlock(self.heads, self.head_dim, self.attention_backend)

    @property
    def single_block(self) -> SingleBlock:
        return SingleBlock(self.heads, self.head_dim, self.attention_backend)

    @property
    def _ends(self) -> dict[str, Module]:
        width = self.width
        ends = {
            "time": TimeEmbedding(width),
            "pooled": Mlp(self.pooled_dim, width, width, activation="silu"),
            "context": Linear(self.context_dim, width, axes=(None, "embed")),
            "image": Linear(self.channels, width, axes=(None, "embed")),
            "modulation": Modulation(width, width, 2),
            "output": Linear(width, self.out_channels, axes=("embed", None), init_kernel=zeros),
        }
        return ends | ({"guidance": TimeEmbedding(width)} if self.guidance_embeds else {})

    def specs(self) -> Specs:
        ends = {name: part.specs() for name, part in self._ends.items()}
        return ends | {
            "double": stack_specs(self.double_block.specs(), self.double_depth),
            "single": stack_specs(self.single_block.specs(), self.single_depth),
        }

    def steering(
        self,
        params: Params,
        sigma: Float[Array, " B"],
        pooled: Float[Array, "B {self.pooled_dim}"],
        guidance: Float[Array, " B"] | None,
    ) -> Float32[Array, "B {self.width}"]:
        """The sum of the embedded time, pooled text and guidance, which steers every block."""
        if self.guidance_embeds != (guidance is not None):
            raise ValueError(
                f"guidance_embeds is {self.guidance_embeds}, so the call "
                f"{'needs' if self.guidance_embeds else 'takes no'} guidance"
            )
        ends = self._ends
        out = ends["time"](params["time"], sigma)
        if guidance is not None:
            out = out + ends["guidance"](params["guidance"], guidance)
        return out + ends["pooled"](params["pooled"], pooled.astype(jnp.float32))

    def __call__(
        self,
        params: Params,
        image: Float[Array, "B N {self.channels}"],
        context: Float[Array, "B T {self.context_dim}"],
        pooled: Float[Array, "B {self.pooled_dim}"],
        sigma: Float[Array, " B"],
        image_places: Real[Array, "B N {len(self.rope_dims)}"],
        context_places: Real[Array, "B T {len(self.rope_dims)}"],
        guidance: Float[Array, " B"] | None = None,
        mask: MaskIntervals | None = None,
    ) -> Float32[Array, "B N {self.out_channels}"]:
        """The network's prediction of noise - data.

        Args:
          image: noisy tokens (1 - sigma) data + sigma noise; compute follows their dtype, except
            for the steering of the blocks and for the output layer, which are fp32.
          sigma: in [0, 1]; 1 is noise. It is diffusers' timestep, its scheduler's divided by 1000.
          image_places, context_places: coordinates per axis of `rope_dims`; FLUX uses (0, row,
            column) and zeros.
          guidance: guidance scale such as 3.5; given if and only if the network takes one.
          mask: mask of S = T + N slots, context first; None: all see all.
        """
        ends, tokens = self._ends, context.shape[1]
        steering = self.steering(params, sigma, pooled, guidance)[:, None]
        places = jnp.concatenate([context_places, image_places], axis=1)
        turns = axial_rope(places, self.rope_dims, ROPE_THETA)
        context = ends["context"](params["context"], context.astype(image.dtype))
        image = ends["image"](params["image"], image)
        remat = REMAT_POLICIES[self.remat]

        def double(streams: tuple[jax.Array, jax.Array], weights: Params):
            context, image = (place(x, PICTURES) for x in streams)
            return self.double_block(weights, context, image, steering, turns, mask), None

        def single(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
            return self.single_block(weights, place(x, PICTURES), steering, turns, mask), None

        streams, _ = jax.lax.scan(remat(double), (context, image), params["double"])
        x = jnp.concatenate(streams, axis=1)
        x, _ = jax.lax.scan(remat(single), x, params["single"])
        scale, shift = ends["modulation"](params["modulation"], steering)
        x = modulated_norm(x[:, tokens:].astype(jnp.float32), scale, shift)
        return ends["output"](params["output"], x)


# The published models' sizes, by name; call an entry, with overrides if wanted.
FLUX_SIZES: dict[str, Callable[..., FluxTransformer]] = {
    "flux.1-dev": FluxTransformer,
    "flux.1-schnell": partial(FluxTransformer, guidance_embeds=False),
    "flux.1-fill-dev": partial(FluxTransformer, channels=384),  # + masked picture and mask
}
