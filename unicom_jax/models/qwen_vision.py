"""The image tower of Qwen2.5-VL (arXiv:2502.13923 §2.1.1): a ViT with windows for pictures of any
size.

    patches ─ Linear ─┬─ RMSNorm ─ attention ─(+)─┬─ RMSNorm ─ SwiGLU ─(+)─ ...  × depth
                      └───────────────────────────┘└───────────────────┘
      ─ RMSNorm ─ merge x merge patches side by side ─ MLP ─ one vector for the language model

Most layers attend inside windows (`core.windows`), a few to the whole picture. Positions are
rotary: half of a head's channels turn with the row, half with the column. A patch has `frames`
pictures over time; a still picture is repeated. Grids are data, not shapes, so one compiled program
serves pictures of all sizes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8

from unicom_jax.core.activations import PICTURES, place
from unicom_jax.core.attention import attention, check_backend, padding_mask
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.grids import check_windows, join_windows, token_mask, token_places
from unicom_jax.core.layers import Linear, Mlp, RMSNorm, SwiGlu
from unicom_jax.core.module import Module, Params, Specs, stack_specs
from unicom_jax.core.positions import Turns, apply_rope, axial_rope
from unicom_jax.core.remat import REMAT_POLICIES, check_remat
from unicom_jax.core.scopes import in_module
from unicom_jax.core.windows import WindowOrder, reorder, window_attention, window_order
from unicom_jax.models.encoder_stack import EncoderAttention

ROPE_THETA = 10_000.0
# Mean and standard deviation of each colour, as in CLIP.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclasses.dataclass(frozen=True)
class Sight:
    """What patches, in window order, see in a layer: the whole picture or their window.

    Attributes:
      picture: the mask of whole pictures.
      first, stop: the slots of each patch's window.
      reach: patches in a window that is not cut off.
    """

    picture: MaskIntervals
    first: Int[Array, "B S"]
    stop: Int[Array, "B S"]
    reach: int


@dataclasses.dataclass(frozen=True)
class RotaryAttention(EncoderAttention):
    """Multi-head attention with four biases and rotary positions."""

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B S {self.width}"],
        turns: Turns,
        sight: Sight,
        whole: bool,
    ) -> Float[Array, "B S {self.width}"]:
        """`whole`: attend to the whole picture, otherwise to the window."""
        q, k, v = (
            self.inward(params[name], x).reshape(*x.shape[:2], self.heads, -1)
            for name in ("query", "key", "value")
        )
        q, k = apply_rope(q, *turns), apply_rope(k, *turns)
        if whole:
            seen = attention(q, k, v, sight.picture, backend=self.backend)
        else:
            seen = window_attention(q, k, v, sight.first, sight.stop, sight.reach)
        return self.outward(params["out"], seen.reshape(x.shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenVision(Module):
    """Qwen2.5-VL's image tower. Compute follows the dtype of the patches.

    Attributes:
      mlp_dim: hidden width of the blocks' SwiGLU.
      out_dim: width of the language model.
      whole_layers: the layers, from 0, that attend to whole pictures.
      patch_size: side of a patch in pixels.
      frames: pictures over time in a patch.
      merge: side, in patches, of the square that becomes one vector.
      window_size: side of a window in pixels.
      remat: a key of `core.remat.REMAT_POLICIES`.
      attention_backend: of the layers that attend to whole pictures, see `core.attention`.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    out_dim: int
    whole_layers: tuple[int, ...] = (7, 15, 23, 31)
    patch_size: int = 14
    frames: int = 2
    merge: int = 2
    window_size: int = 112
    remat: str = "none"
    attention_backend: str = "dense"

    def __post_init__(self) -> None:
        if self.window_size % (self.patch_size * self.merge):
            raise ValueError(
                f"window_size={self.window_size} is not a multiple of patch_size * merge = "
                f"{self.patch_size * self.merge}; windows hold whole squares of patches"
            )
        if wrong := [layer for layer in self.whole_layers if not 0 <= layer < self.depth]:
            raise ValueError(
                f"whole_layers {wrong} are outside [0, {self.depth}), the layers of this tower"
            )
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width={self.width} does not give heads={self.heads} equally many channels, a "
                "multiple of 4, which rotary positions in two dimensions need"
            )
        check_remat(self.remat)
        check_backend(self.attention_backend)

    @property
    def patch_dim(self) -> int:
        return 3 * self.frames * self.patch_size**2

    @property
    def embedding(self) -> Linear:
        return Linear(self.patch_dim, self.width, bias=False, axes=(None, "embed"))

    @property
    def norm(self) -> RMSNorm:
        return RMSNorm(self.width)

    @property
    def attention(self) -> RotaryAttention:
        return RotaryAttention(self.width, self.heads, self.attention_backend)

    @property
    def mlp(self) -> SwiGlu:
        return SwiGlu(self.width, self.mlp_dim, bias=True)

    @property
    def merger(self) -> Mlp:
        joined = self.merge**2 * self.width
        return Mlp(joined, joined, self.out_dim, activation="gelu")

    def specs(self) -> Specs:
        block = {
            "attention_norm": self.norm.specs(),
            "attention": self.attention.specs(),
            "mlp_norm": self.norm.specs(),
            "mlp": self.mlp.specs(),
        }
        return {
            "embedding": self.embedding.specs(),
            "blocks": stack_specs(block, self.depth),
            "norm": self.norm.specs(),
            "merger": self.merger.specs(),
        }

    def prepare(
        self, patches: UInt8[Array, "B N channels"], grids: Int[Array, "B 2"]
    ) -> Float32[Array, "B N {self.patch_dim}"]:
        """Patches of still pictures as `__call__` takes them.

        Args:
          patches: raster order, (row, column, channel) inside a patch, as in `MixedBatch`.
          grids: (rows, columns) of patches.
        """
        (batch, slots), side = patches.shape[:2], self.patch_size
        squares = join_windows(patches.astype(jnp.float32), grids, self.merge)
        pixels = squares.reshape(batch, slots, side, side, 3)
        pixels = ((pixels / 255 - MEAN) / DEVIATION).transpose(0, 1, 4, 2, 3)
        frames = jnp.repeat(pixels[:, :, :, None], self.frames, axis=3)
        return frames.reshape(batch, slots, self.patch_dim)

    @in_module("vision")
    def __call__(
        self,
        params: Params,
        patches: Float[Array, "B N {self.patch_dim}"],
        grids: Int[Array, "B 2"],
    ) -> Float[Array, "B N/{self.merge}**2 {self.out_dim}"]:
        """A vector for each square of merge x merge patches in raster order; 0 at padding.

        Args:
          params: weights as declared by `specs`.
          patches: (channel, frame, row, column) inside a patch; the patches of a square follow one
            another, squares and patches within them in raster order, as `prepare` gives them.
          grids: (rows, columns) of patches, multiples of `merge` with rows * columns <= N;
            (0, 0): no picture.

        Raises:
          ValueError: patches of another size; a grid that is no multiple of `merge` or has more
            than N patches (under jit, its vectors become NaN).
        """
        self._check(patches)
        patches = self._check_grids(patches, grids)
        count, squares = self.merge**2, grids // self.merge
        units = patches.shape[1] // count
        order = window_order(squares, units, self.window_size // (self.patch_size * self.merge))
        turns = self._turns(squares, order)
        sight = self._sight(grids, order)

        x = reorder(patches.reshape(len(patches), units, -1), order.source)
        x = self.embedding(params["embedding"], x.reshape(patches.shape))
        for first, stop, whole in self._runs():
            x = self._run(params["blocks"], x, turns, sight, first, stop, whole)
        x = self.norm(params["norm"], x).reshape(len(x), units, -1)
        vectors = reorder(self.merger(params["merger"], x), order.place)
        return jnp.where(token_mask(squares, units)[..., None], vectors, 0)

    def _check(self, patches: jax.Array) -> None:
        slots, channels = patches.shape[1:]
        if channels != self.patch_dim:
            raise ValueError(
                f"patches have {channels} channels, but patch_size {self.patch_size} needs "
                f"{self.patch_dim}; use QwenVision.prepare"
            )
        if slots % self.merge**2:
            raise ValueError(
                f"{slots} patch slots are not a multiple of {self.merge**2}; pad pictures to one"
            )

    def _check_grids(self, patches: jax.Array, grids: jax.Array) -> jax.Array:
        large = grids[:, 0] * grids[:, 1] > patches.shape[1]
        if not isinstance(large, jax.core.Tracer) and np.any(large):
            rows, columns = np.asarray(grids)[np.argmax(large)]
            raise ValueError(
                f"a picture of {rows} x {columns} patches exceeds the {patches.shape[1]} slots of "
                "a row; pad pictures to more patches"
            )
        patches = jnp.where(large[:, None, None], jnp.nan, patches)
        return check_windows(patches, grids, self.merge)

    def _turns(self, squares: jax.Array, order: WindowOrder) -> Turns:
        """Rotary angles of all patches in window order."""
        batch, units = order.source.shape
        corner = self.merge * reorder(token_places(squares, units), order.source)
        inner = np.stack(np.divmod(np.arange(self.merge**2), self.merge), axis=-1)
        places = (corner[:, :, None] + inner).reshape(batch, -1, 2)
        half = self.width // self.heads // 2
        return axial_rope(places, (half, half), ROPE_THETA)

    def _sight(self, grids: jax.Array, order: WindowOrder) -> Sight:
        count, patches = self.merge**2, self.merge**2 * order.source.shape[1]

        def of_patches(x: jax.Array) -> jax.Array:
            return jnp.repeat(x * count, count, axis=1)

        return Sight(
            picture=padding_mask(grids[:, 0] * grids[:, 1], patches),
            first=of_patches(order.first),
            stop=of_patches(order.stop),
            reach=(self.window_size // self.patch_size) ** 2,
        )

    def _runs(self) -> list[tuple[int, int, bool]]:
        """Successive layers that see the same: (first, stop, whether they see whole pictures)."""
        whole = [layer in self.whole_layers for layer in range(self.depth)]
        starts = [i for i in range(self.depth) if i == 0 or whole[i] != whole[i - 1]]
        stops = [*starts[1:], self.depth]
        return [(first, stop, whole[first]) for first, stop in zip(starts, stops, strict=True)]

    def _run(
        self,
        blocks: Params,
        x: jax.Array,
        turns: Turns,
        sight: Sight,
        first: int,
        stop: int,
        whole: bool,
    ) -> jax.Array:
        """Layers first, ..., stop - 1."""

        def block(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
            x = place(x, PICTURES)
            y = self.norm(weights["attention_norm"], x)
            x = x + self.attention(weights["attention"], y, turns, sight, whole)
            return x + self.mlp(weights["mlp"], self.norm(weights["mlp_norm"], x)), None

        layers = jax.tree.map(lambda weight: weight[first:stop], blocks)
        return jax.lax.scan(REMAT_POLICIES[self.remat](block), x, layers)[0]
