"""SigLIP 2's image tower (arXiv 2502.14786): a ViT over patches, fixed resolution or NaFlex.

NaFlex keeps the native aspect ratio: the learned position grid is resized to each image's (rows,
columns) of patches, and padding patches are hidden from attention. Grids are data here, not shapes,
so one compiled program serves them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.attention import padding_mask
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.layers import LayerNorm, Linear, Mlp
from unicom_jax.core.module import Module, Params, ParamSpec, Specs, normal
from unicom_jax.core.scopes import in_module
from unicom_jax.models.encoder_stack import EncoderAttention, Tower


def resize_weights(
    index: Int[Array, "*#B"], target: Int[Array, "*#B"], source: int
) -> Float32[Array, "*B {source}"]:
    """One axis of an antialiased bilinear resize: each source sample's weight in a target sample.

    Equals torch's `interpolate(mode="bilinear", antialias=True, align_corners=False)`: a triangle
    around the target's centre whose half-width is a source sample when enlarging and a target
    sample when reducing. (torch 2.13 on a CPU leaves out the vertical pass where the target is one
    column wide; this function does not.)

    Args:
      index: index of the target sample.
      target: number of target samples; may be traced.
      source: number of source samples.

    Returns:
      Rows that sum to one.
    """
    scale = source / target.astype(jnp.float32)
    centre = (index.astype(jnp.float32) + 0.5) * scale
    distance = jnp.abs(jnp.arange(source) + 0.5 - centre[..., None])
    weights = jnp.maximum(0.0, 1.0 - distance / jnp.maximum(scale, 1.0)[..., None])
    return weights / weights.sum(axis=-1, keepdims=True)


def resize_positions(
    table: Float[Array, "rows columns W"], grids: Int[Array, "B 2"], slots: int
) -> Float32[Array, "B {slots} W"]:
    """A learned grid resized to `grids` of (rows, columns).

    Slot n holds the position of patch (n // columns, n % columns); slots from rows * columns on
    hold zeros. The resize is separable: the weights are the outer product of both axes' weights.
    """
    height, width, dim = table.shape
    grids = jnp.asarray(grids)[:, None, :]  # (B, 1, 2)
    rows, columns = jnp.maximum(grids[..., 0], 1), jnp.maximum(grids[..., 1], 1)
    slot = jnp.arange(slots)[None, :]
    inside = slot < grids[..., 0] * grids[..., 1]
    slot = jnp.where(inside, slot, 0)
    by_row = resize_weights(slot // columns, rows, height)
    by_column = resize_weights(slot % columns, columns, width)
    weights = (by_row[..., :, None] * by_column[..., None, :] * inside[..., None, None]).reshape(
        -1, height * width
    )
    table = table.astype(jnp.float32).reshape(height * width, dim)
    resized = jnp.matmul(weights, table, precision=jax.lax.Precision.HIGHEST)
    return resized.reshape(*inside.shape, dim)


@dataclasses.dataclass(frozen=True)
class AttentionPool(Module):
    """SigLIP's MAP head: a learned probe attends to all tokens, then an MLP."""

    width: int
    heads: int
    mlp_dim: int
    backend: str = "dense"

    @property
    def attention(self) -> EncoderAttention:
        return EncoderAttention(self.width, self.heads, self.backend)

    @property
    def norm(self) -> LayerNorm:
        return LayerNorm(self.width)

    @property
    def mlp(self) -> Mlp:
        return Mlp(self.width, self.mlp_dim, self.width, activation="gelu_tanh")

    def specs(self) -> Specs:
        return {
            "probe": ParamSpec((self.width,), ("embed",), normal(self.width**-0.5)),
            "attention": self.attention.specs(),
            "norm": self.norm.specs(),
            "mlp": self.mlp.specs(),
        }

    def __call__(
        self,
        params: Params,
        features: Float[Array, "B N {self.width}"],
        lengths: Int[Array, " B"],
    ) -> Float[Array, "B {self.width}"]:
        batch, _, width = features.shape
        probe = jnp.broadcast_to(params["probe"].astype(features.dtype), (batch, 1, width))
        pooled = self.attention(params["attention"], probe, features, padding_mask(lengths, 1))[
            :, 0
        ]
        return pooled + self.mlp(params["mlp"], self.norm(params["norm"], pooled))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionEncoder(Tower):
    """SigLIP 2's image tower. Compute follows the dtype of the patches.

    Attributes, besides those of `Tower`:
      patch_size: side of a patch in pixels.
      position_rows, position_cols: the learned position grid; without `naflex`, every image's grid.
      naflex: resize the position grid to each image's own (rows, columns).
    """

    patch_size: int = 16
    position_rows: int = 16
    position_cols: int = 16
    naflex: bool = True

    @property
    def patch_dim(self) -> int:
        return self.patch_size * self.patch_size * 3

    @property
    def embedding(self) -> Linear:
        return Linear(self.patch_dim, self.width, axes=(None, "embed"))

    @property
    def head(self) -> AttentionPool:
        return AttentionPool(self.width, self.heads, self.mlp_dim, self.attention_backend)

    def specs(self) -> Specs:
        positions = (self.position_rows, self.position_cols, self.width)
        return {
            "embedding": self.embedding.specs(),
            "positions": ParamSpec(positions, (None, None, "embed"), normal(self.width**-0.5)),
            "blocks": self.stack.specs(),
            "norm": self.norm.specs(),
            "head": self.head.specs(),
        }

    @in_module("vision")
    def __call__(
        self,
        params: Params,
        patches: Float[Array, "B N {self.patch_dim}"],
        grids: Int[Array, "B 2"],
    ) -> Float[Array, "B N {self.width}"]:
        """Features after the final LayerNorm, exactly 0 at padding tokens.

        Args:
          params: weights as declared by `specs`.
          patches: in [-1, 1], raster order, (row, column, channel) inside a patch.
          grids: (rows, columns) of patches, rows * columns <= N; (0, 0): no image.

        Raises:
          ValueError: patches do not fit `patch_size`, or N the position grid of a fixed resolution.
        """
        return self.embedding_and_features(params, patches, grids)[1]

    @in_module("vision")
    def embedding_and_features(
        self,
        params: Params,
        patches: Float[Array, "B N {self.patch_dim}"],
        grids: Int[Array, "B 2"],
    ) -> tuple[Float[Array, "B N {self.width}"], Float[Array, "B N {self.width}"]]:
        """The input of the first block (embedded patches and positions), and `__call__`'s result.

        Both are 0 at padding tokens; arguments and errors as for `__call__`.
        """
        embedded, mask = self._embed(params, patches, grids)
        x = self.norm(params["norm"], self.stack(params["blocks"], embedded, mask))
        return _zero_padding(embedded, grids), _zero_padding(x, grids)

    @in_module("vision")
    def hidden_states(
        self,
        params: Params,
        patches: Float[Array, "B N {self.patch_dim}"],
        grids: Int[Array, "B 2"],
        layers: Sequence[int],
    ) -> tuple[Float[Array, "B N {self.width}"], ...]:
        """The residual stream after k blocks for every k in `layers`.

        States precede the final LayerNorm; k = 0 gives the embeddings; 0 at padding tokens. Blocks
        deeper than the last one requested do not run. Raises ValueError where a layer is not in
        [0, depth].
        """
        x, mask = self._embed(params, patches, grids)
        states = self.stack.hidden_states(params["blocks"], x, mask, layers)
        return tuple(_zero_padding(state, grids) for state in states)

    def pool(
        self,
        params: Params,
        features: Float[Array, "B N {self.width}"],
        grids: Int[Array, "B 2"],
    ) -> Float[Array, "B {self.width}"]:
        """One vector per image, by the MAP head, from the result of `__call__`."""
        return self.head(params["head"], features, grids[:, 0] * grids[:, 1])

    def _embed(
        self, params: Params, patches: jax.Array, grids: jax.Array
    ) -> tuple[jax.Array, MaskIntervals]:
        slots, channels = patches.shape[1:]
        if channels != self.patch_dim:
            raise ValueError(
                f"patches have {channels} channels but patch_size {self.patch_size} needs "
                f"{self.patch_dim}; patchify with the encoder's patch_size"
            )
        x = self.embedding(params["embedding"], patches)
        x = x + self._positions(params["positions"], grids, slots).astype(x.dtype)
        return x, padding_mask(grids[:, 0] * grids[:, 1], slots)

    def _positions(self, table: jax.Array, grids: jax.Array, slots: int) -> jax.Array:
        if self.naflex:
            return resize_positions(table, grids, slots)
        if slots != self.position_rows * self.position_cols:
            raise ValueError(
                f"a fixed-resolution encoder takes {self.position_rows} x {self.position_cols} "
                f"patches an image, not {slots}; resize the images or set naflex=True"
            )
        return table.reshape(1, slots, self.width)


def _zero_padding(x: jax.Array, grids: jax.Array) -> jax.Array:
    inside = jnp.arange(x.shape[1])[None, :] < (grids[:, 0] * grids[:, 1])[:, None]
    return jnp.where(inside[..., None], x, 0)
