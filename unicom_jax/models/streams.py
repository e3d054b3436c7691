"""The streams of an MM-DiT: separate weights for context and image, one attention over both.

    x ── LayerNorm ─ · (1 + scale) + shift ─ query, key, value ─ joint attention ─ · gate ─(+)
      ── LayerNorm ─ · (1 + scale) + shift ─ MLP ────────────────────────────────── · gate ─(+)

Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis".
FLUX (`models/flux.py`) and Stable Diffusion 3 (`models/mmdit.py`) are made of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.attention import attention
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.layers import Linear, Mlp, RMSNorm
from unicom_jax.core.modulation import Modulation, gated_sum, modulated_norm
from unicom_jax.core.module import Module, Params, Specs

MLP_RATIO = 4  # ratio of every MLP's hidden width to the width

# Query, key and value.
Heads = tuple[Float[Array, "B S H D"], Float[Array, "B S H D"], Float[Array, "B S H D"]]
Steers = list[Float32[Array, "B 1 W"]]


@dataclasses.dataclass(frozen=True)
class Projections(Module):
    """Queries, keys and values; with `qk_norm`, queries and keys are RMS-normed head by head."""

    heads: int
    head_dim: int
    qk_norm: bool = True

    @property
    def _parts(self) -> dict[str, Module]:
        width = self.heads * self.head_dim
        linear, norm = Linear(width, width, axes=("embed", "heads")), RMSNorm(self.head_dim)
        parts = {"query": linear, "key": linear, "value": linear}
        return parts | ({"query_norm": norm, "key_norm": norm} if self.qk_norm else {})

    def specs(self) -> Specs:
        return {name: part.specs() for name, part in self._parts.items()}

    def __call__(self, params: Params, x: Float[Array, "B S W"]) -> Heads:
        parts = self._parts

        def project(name: str) -> jax.Array:
            out = parts[name](params[name], x).reshape(*x.shape[:2], self.heads, self.head_dim)
            norm = parts.get(f"{name}_norm")
            return out if norm is None else norm(params[f"{name}_norm"], out)

        return project("query"), project("key"), project("value")


@dataclasses.dataclass(frozen=True)
class SeenStream(Module):
    """A stream that the other one attends to and that ends there."""

    heads: int
    head_dim: int
    qk_norm: bool = True

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def _parts(self) -> dict[str, Module]:
        return {
            "modulation": Modulation(self.width, self.width, 2),
            "attention": Projections(self.heads, self.head_dim, self.qk_norm),
        }

    def specs(self) -> Specs:
        return {name: part.specs() for name, part in self._parts.items()}

    def steer(self, params: Params, steering: Float32[Array, "B 1 W"]) -> Steers:
        """Shift and scale; in this kind of stream the scale is the first in the weights."""
        scale, shift = self._parts["modulation"](params["modulation"], steering)
        return [shift, scale]

    def project(self, params: Params, x: Float[Array, "B S W"], steers: Steers) -> Heads:
        """What the joint attention gets of x."""
        shift, scale = steers[:2]
        return self._parts["attention"](params["attention"], modulated_norm(x, scale, shift))


@dataclasses.dataclass(frozen=True)
class Stream(SeenStream):
    """A stream that goes through the block: attention, which both streams share, and MLP."""

    @property
    def _parts(self) -> dict[str, Module]:
        width = self.width
        return super()._parts | {
            "modulation": Modulation(width, width, 6),
            "output": Linear(width, width, axes=("heads", "embed")),
            "mlp": Mlp(width, MLP_RATIO * width, width),
        }

    def steer(self, params: Params, steering: Float32[Array, "B 1 W"]) -> Steers:
        """Shift, scale and gate of the attention, then of the MLP."""
        return self._parts["modulation"](params["modulation"], steering)

    def finish(
        self,
        params: Params,
        x: Float[Array, "B S W"],
        mixed: Float[Array, "B S W"],
        steers: Steers,
    ) -> Float[Array, "B S W"]:
        """The block's output, from x and the output of the attention."""
        return self._feed(params, self._add(params, "output", x, mixed, steers[2]), steers)

    def _add(
        self, params: Params, name: str, x: jax.Array, mixed: jax.Array, gate: jax.Array
    ) -> jax.Array:
        return gated_sum(x, gate, self._parts[name](params[name], mixed))

    def _feed(self, params: Params, x: jax.Array, steers: Steers) -> jax.Array:
        shift, scale, gate = steers[3:6]
        return self._add(params, "mlp", x, modulated_norm(x, scale, shift), gate)


@dataclasses.dataclass(frozen=True)
class DualStream(Stream):
    """A stream with a second attention, over its own tokens alone (MMDiT-X of SD3.5 medium).

    The second attention has its own shift, scale and gate, which come last in the weights. Both
    attentions read the block's input.
    """

    attention_backend: str = "dense"

    @property
    def _parts(self) -> dict[str, Module]:
        parts = super()._parts
        return parts | {
            "modulation": Modulation(self.width, self.width, 9),
            "own_attention": parts["attention"],
            "own_output": parts["output"],
        }

    def finish(
        self,
        params: Params,
        x: Float[Array, "B S W"],
        mixed: Float[Array, "B S W"],
        steers: Steers,
        mask: MaskIntervals | None = None,
    ) -> Float[Array, "B S W"]:
        """As for `Stream`; `mask` is that of the stream's own tokens."""
        shift, scale, gate = steers[6:]
        normed = modulated_norm(x, scale, shift)
        heads = self._parts["own_attention"](params["own_attention"], normed)
        own = attend(heads, mask, self.attention_backend)
        x = self._add(params, "output", x, mixed, steers[2])
        return self._feed(params, self._add(params, "own_output", x, own, gate), steers)


def attend(heads: Heads, mask: MaskIntervals | None, backend: str) -> Float[Array, "B S H*D"]:
    """Attention with the heads' outputs side by side."""
    mixed = attention(*heads, mask, backend=backend)
    return mixed.reshape(*mixed.shape[:2], -1)


def attend_jointly(
    sides: Sequence[Heads], mix: Callable[[Heads], Float[Array, "B S W"]]
) -> list[Float[Array, "B s W"]]:
    """The output of `mix` over the joined heads of two streams, split between them again."""
    heads = tuple(jnp.concatenate(pair, axis=1) for pair in zip(*sides, strict=True))
    return jnp.split(mix(heads), [sides[0][0].shape[1]], axis=1)


def joint_mask(
    contexts: Int[Array, " B"], images: Int[Array, " B"], context: int, image: int
) -> MaskIntervals:
    """All see the real tokens of the row [context | image]; both parts are padded at their ends.

    For two real tokens of three context slots, and two of four image slots:

         c c . i i . .
         1 1 . 1 1 . .     the same for every query

    Args:
      contexts, images: number of real tokens. context, image: number of slots.
    """
    contexts, images = contexts.astype(jnp.int32), images.astype(jnp.int32)
    zero = jnp.zeros_like(contexts)
    bounds = (zero, contexts, zero + context, context + images)
    shape = (len(contexts), context + image)
    return MaskIntervals(*(jnp.broadcast_to(bound[:, None], shape) for bound in bounds))
