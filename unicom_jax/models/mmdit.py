"""Stable Diffusion 3's transformer, as diffusers' SD3Transformer2DModel computes it.

    context ─ Linear ──────┐                      ┌ context
                           ├ dual × 13, joint × … ┤
    latents ─ Linear ─ (+) ┘                      └ image ─ last block ─ out
                        │                                      │
      sines of the place on the picture           sees the context once more
    time, pooled text ─ two MLPs ─ (+) ─ steers every block (AdaLN-Zero)

MM-DiT (Esser et al. 2024): two streams with separate weights and one attention over both. In SD3.5
medium the first blocks have a second attention over the picture alone (`dual_depth`, "MMDiT-X"),
and all of SD3.5 norms queries and keys. The last block does not change the context.

This file keeps the convention of that class, but for time: sigma = 1 is noise, sigma = 0 is data
(diffusers' timestep is 1000 sigma), and the output is d latents / d sigma = noise - data. Tokens
are squares of `patch` x `patch` latents, flattened as (channel, row, column).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.activations import PICTURES, place
from unicom_jax.core.attention import check_backend, padding_mask
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.grids import token_places
from unicom_jax.core.layers import Linear, Mlp, TimeEmbedding, place_embedding
from unicom_jax.core.modulation import Modulation, modulated_norm
from unicom_jax.core.module import Module, Params, ParamSpec, Specs, stack_specs, zeros
from unicom_jax.core.remat import REMAT_POLICIES, check_remat
from unicom_jax.models.streams import (
    DualStream,
    SeenStream,
    Stream,
    attend,
    attend_jointly,
    joint_mask,
)

POSITIONS = "positions"  # key of the table of places, which is not trained


@dataclasses.dataclass(frozen=True)
class JointBlock(Module):
    """Two streams with separate weights and one attention over [context | image].

    Attributes:
      dual: whether the image has a second attention over its own tokens.
      last: whether the context ends here; the block then returns it as it was.
    """

    heads: int
    head_dim: int
    qk_norm: bool = True
    dual: bool = False
    last: bool = False
    attention_backend: str = "dense"

    @property
    def context(self) -> SeenStream:
        kind = SeenStream if self.last else Stream
        return kind(self.heads, self.head_dim, self.qk_norm)

    @property
    def image(self) -> Stream:
        sizes = (self.heads, self.head_dim, self.qk_norm)
        return DualStream(*sizes, self.attention_backend) if self.dual else Stream(*sizes)

    def specs(self) -> Specs:
        return {"context": self.context.specs(), "image": self.image.specs()}

    def __call__(
        self,
        params: Params,
        context: Float[Array, "B T W"],
        image: Float[Array, "B N W"],
        steering: Float32[Array, "B 1 W"],
        mask: MaskIntervals | None,
        image_mask: MaskIntervals | None,
    ) -> tuple[Float[Array, "B T W"], Float[Array, "B N W"]]:
        """`mask` is that of [context | image], `image_mask` that of the image alone."""
        sides = ((self.context, "context", context), (self.image, "image", image))
        steers = [stream.steer(params[name], steering) for stream, name, _ in sides]
        seen, mixed = attend_jointly(
            [
                stream.project(params[name], x, steer)
                for (stream, name, x), steer in zip(sides, steers, strict=True)
            ],
            lambda heads: attend(heads, mask, self.attention_backend),
        )
        if not self.last:
            context = self.context.finish(params["context"], context, seen, steers[0])
        own = {"mask": image_mask} if self.dual else {}
        return context, self.image.finish(params["image"], image, mixed, steers[1], **own)


@dataclasses.dataclass(frozen=True)
class MMDiT(Module):
    """Stable Diffusion 3 and 3.5 over packed latents. The defaults are the sizes of SD3.5 medium.

    Attributes:
      latent_channels, patch: a token is patch² latents of so many channels, in and out.
      depth: number of blocks, the last one included.
      dual_depth: number of blocks, from the first, whose image attends to itself a second time.
      heads, head_dim: the width is their product.
      qk_norm: whether queries and keys are RMS-normed.
      context_dim: width of the context tokens.
      pooled_dim: width of the pooled vector.
      position_side: tokens along a side of the table of places, of which a picture uses the middle.
      sample_size: the places of a new table run from 0 to sample_size / patch along a side, in
        position_side equal steps.
      remat: what a block keeps for the backward pass, a key of `core.remat.REMAT_POLICIES`.
      attention_backend: as in `core.attention`.
    """

    latent_channels: int = 16
    patch: int = 2
    depth: int = 24
    dual_depth: int = 13
    heads: int = 24
    head_dim: int = 64
    qk_norm: bool = True
    context_dim: int = 4096
    pooled_dim: int = 2048
    position_side: int = 384
    sample_size: int = 128
    remat: str = "none"
    attention_backend: str = "dense"

    def __post_init__(self) -> None:
        check_backend(self.attention_backend)
        check_remat(self.remat)
        if not 0 <= self.dual_depth < self.depth:
            raise ValueError(
                f"dual_depth={self.dual_depth} of depth={self.depth} blocks: the last one has no "
                "second attention; give at least 0 and less than depth"
            )
        if self.width % 4:
            raise ValueError(
                f"heads={self.heads} of head_dim={self.head_dim} make a width of {self.width}; "
                "places need a multiple of 4"
            )

    def check_grid(self, rows: int, cols: int, key: str) -> None:
        """Raises ValueError if the table of places is smaller than a grid; `key` sets its side."""
        if (most := max(rows, cols)) > self.position_side:
            raise ValueError(
                f"{key}={self.position_side}, but a picture may be {most} tokens long; set it to "
                f"at least {most}"
            )

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Numbers in a token."""
        return self.latent_channels * self.patch**2

    @property
    def blocks(self) -> dict[str, tuple[JointBlock, int]]:
        """The kinds of blocks in their order, and how many there are of each; the last is one."""
        make = partial(
            JointBlock,
            self.heads,
            self.head_dim,
            self.qk_norm,
            attention_backend=self.attention_backend,
        )
        counts = {
            "dual": (make(dual=True), self.dual_depth),
            "joint": (make(), self.depth - 1 - self.dual_depth),
            "last": (make(last=True), 1),
        }
        return {name: (block, count) for name, (block, count) in counts.items() if count}

    @property
    def _ends(self) -> dict[str, Module]:
        width = self.width
        return {
            "time": TimeEmbedding(width),
            "pooled": Mlp(self.pooled_dim, width, width, activation="silu"),
            "context": Linear(self.context_dim, width, axes=(None, "embed")),
            "image": Linear(self.channels, width, axes=(None, "embed")),
            "modulation": Modulation(width, width, 2),
            "output": Linear(width, self.channels, axes=("embed", None), init_kernel=zeros),
        }

    def specs(self) -> Specs:
        side = self.position_side
        return {
            **{name: part.specs() for name, part in self._ends.items()},
            POSITIONS: ParamSpec((side**2, self.width), (None, "embed"), self._first_table),
            **{
                name: block.specs() if name == "last" else stack_specs(block.specs(), count)
                for name, (block, count) in self.blocks.items()
            },
        }

    def _first_table(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Sines and cosines of the column, then of the row, of every place (raster order)."""
        steps = jnp.arange(self.position_side) * (self.sample_size // self.patch)
        row, column = jnp.meshgrid(*[steps / self.position_side] * 2, indexing="ij")
        places = jnp.stack([column, row], axis=-1).reshape(-1, 2)
        return place_embedding(places, shape[-1]).astype(dtype)

    def steering(
        self,
        params: Params,
        sigma: Float[Array, " B"],
        pooled: Float[Array, "B {self.pooled_dim}"] | None,
    ) -> Float32[Array, "B {self.width}"]:
        """The sum of the embedded time and pooled text, which steers every block.

        `pooled` None is a zero vector, whose embedding is not zero.
        """
        ends = self._ends
        if pooled is None:
            pooled = jnp.zeros((len(sigma), self.pooled_dim))
        time = ends["time"](params["time"], sigma)
        return time + ends["pooled"](params["pooled"], pooled.astype(jnp.float32))

    def positions(
        self, params: Params, grids: Int[Array, "B 2"], tokens: int
    ) -> Float32[Array, "B {tokens} {self.width}"]:
        """What is added to tokens for their places: the picture is the middle of the table.

        NaN for a picture that has more rows or columns than the table.
        """
        side = self.position_side
        corner = (side - grids) // 2
        row, column = jnp.moveaxis(corner[:, None] + token_places(grids, tokens), -1, 0)
        table = jax.lax.stop_gradient(params[POSITIONS])
        found = jnp.take(table, row * side + column, axis=0, mode="clip")
        larger = jnp.any(grids > side, axis=-1)[:, None, None]
        return jnp.where(larger, jnp.nan, found).astype(jnp.float32)

    def __call__(
        self,
        params: Params,
        image: Float[Array, "B N {self.channels}"],
        context: Float[Array, "B T {self.context_dim}"],
        sigma: Float[Array, " B"],
        grids: Int[Array, "B 2"],
        lengths: Int[Array, " B"] | None = None,
        pooled: Float[Array, "B {self.pooled_dim}"] | None = None,
    ) -> Float32[Array, "B N {self.channels}"]:
        """The network's prediction of noise - data; arbitrary at padding.

        Args:
          image: noisy tokens (1 - sigma) data + sigma noise in raster order; compute follows their
            dtype, except for the steering of the blocks and for the output layer, which are fp32.
          context: context tokens, which have no places.
          sigma: in [0, 1]; 1 is noise.
          grids: rows and columns of the tokens of each picture; later tokens are padding.
          lengths: number of context tokens; later ones are padding. None: all are real.
          pooled: pooled text; None where there is none.
        """
        ends, (batch, tokens), slots = self._ends, image.shape[:2], context.shape[1]
        steering = self.steering(params, sigma, pooled)[:, None]
        lengths = jnp.full(batch, slots) if lengths is None else lengths
        real = grids[:, 0] * grids[:, 1]
        masks = joint_mask(lengths, real, slots, tokens), padding_mask(real, tokens)
        context = ends["context"](params["context"], context.astype(image.dtype))
        embedded = ends["image"](params["image"], image)
        placed = embedded.astype(jnp.float32) + self.positions(params, grids, tokens)
        streams = context, placed.astype(image.dtype)
        remat = REMAT_POLICIES[self.remat]
        for name, (block, _) in self.blocks.items():

            def step(streams: tuple[jax.Array, jax.Array], weights: Params, block=block):
                context, image = (place(x, PICTURES) for x in streams)
                return block(weights, context, image, steering, *masks), None

            if name == "last":
                streams, _ = remat(step)(streams, params[name])
            else:
                streams, _ = jax.lax.scan(remat(step), streams, params[name])
        scale, shift = ends["modulation"](params["modulation"], steering)
        x = modulated_norm(streams[1].astype(jnp.float32), scale, shift)
        return self._channels_first(ends["output"](params["output"], x))

    def _channels_first(self, out: Float32[Array, "B N C"]) -> Float32[Array, "B N C"]:
        """The output layer gives a token as (row, column, channel)."""
        squares = out.reshape(*out.shape[:2], self.patch**2, self.latent_channels)
        return jnp.swapaxes(squares, -1, -2).reshape(out.shape)


# The published models' sizes, by name; call an entry, with overrides if wanted.
MMDIT_SIZES: dict[str, Callable[..., MMDiT]] = {
    "sd3-medium": partial(MMDiT, dual_depth=0, qk_norm=False, position_side=192),
    "sd3.5-medium": MMDiT,
    "sd3.5-large": partial(MMDiT, depth=38, dual_depth=0, heads=38, position_side=192),
}
