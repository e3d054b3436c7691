"""The space in which the pixel decoder paints: pixels, or latents of a frozen KL autoencoder.

    patches of pixels (B, N, 3 P²) -> encode -> tokens (B, N, channels) -> decode -> patches

Either way a token represents one patch of the picture, so features condition it place by place.
The autoencoder is frozen here, and its weights are not part of the codec's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Shaped

from unicom_jax.core.activations import on_own_pictures
from unicom_jax.core.grids import token_mask, token_places
from unicom_jax.core.module import Params
from unicom_jax.models.autoencoder import Autoencoder
from unicom_jax.models.extent import Extent

AUTOENCODER = "autoencoder"  # the autoencoder's weights among the frozen parts


@dataclasses.dataclass(frozen=True)
class PixelSpace:
    """Tokens are patches of pixels, so nothing is encoded or decoded."""

    patch: int

    @property
    def channels(self) -> int:
        return 3 * self.patch**2

    def encode(
        self, frozen: Params, patches: Float[Array, "B N {self.channels}"], grids: Int[Array, "B 2"]
    ) -> Float[Array, "B N {self.channels}"]:
        return patches

    def decode(
        self, frozen: Params, tokens: Float[Array, "B N {self.channels}"], grids: Int[Array, "B 2"]
    ) -> Float[Array, "B N {self.channels}"]:
        return tokens

    def of_grid(self, rows: int, cols: int) -> PixelSpace:
        return self


@dataclasses.dataclass(frozen=True)
class LatentSpace:
    """Tokens are squares of autoencoder latents, packed channel-major as in FLUX, and normalised.

    The autoencoder sees whole pictures, so patches are laid out on a canvas first.

    Attributes:
      autoencoder: shrinks pictures by its factor f, which divides the patch.
      patch: P, pixels along a side of a patch; a token holds (P/f)² latents of c channels.
      rows, cols: patches of the canvas; no picture has more.
      ragged: whether pictures may be smaller than the canvas (aspect buckets). Each is computed as
        if it were alone, on the smallest of a few canvases that can hold it (`canvases`).
      compute_dtype: dtype of the autoencoder's convolutions; its norms are fp32.
    """

    autoencoder: Autoencoder
    patch: int
    rows: int
    cols: int
    ragged: bool = False
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        factor = self.autoencoder.factor
        if self.patch % factor:
            raise ValueError(
                f"data.patch={self.patch} is not a multiple of {factor}, by which the autoencoder "
                f"reduces pictures; make it one"
            )
        self.autoencoder.check_side(self.side)

    @property
    def side(self) -> int:
        """Latents along a side of a token."""
        return self.patch // self.autoencoder.factor

    @property
    def channels(self) -> int:
        return self.side**2 * self.autoencoder.latent_channels

    def encode(
        self,
        frozen: Params,
        patches: Float[Array, "B N 3*{self.patch}**2"],
        grids: Int[Array, "B 2"],
    ) -> Float32[Array, "B N {self.channels}"]:
        """Tokens from patches in [-1, 1]; 0 at padding.

        They are means of the posterior, normalised as the autoencoder does it.
        `frozen["autoencoder"]` holds its weights; grids are rows and columns of patches.
        """
        return self._by_canvas(LatentSpace._encode, frozen, patches, grids)

    def _encode(self, frozen: Params, patches: jax.Array, grids: jax.Array) -> jax.Array:
        images = self.to_images(patches, grids).astype(self.compute_dtype)
        latents = self.autoencoder.encode(frozen[AUTOENCODER], images, self.extent(grids))
        packed = pack(latents.astype(jnp.float32), self.side)
        packed = self.autoencoder.normalise(frozen[AUTOENCODER], packed)
        return self.take_up(packed, grids, patches.shape[1])

    def decode(
        self,
        frozen: Params,
        tokens: Float[Array, "B N {self.channels}"],
        grids: Int[Array, "B 2"],
    ) -> Float32[Array, "B N 3*{self.patch}**2"]:
        """Patches, about [-1, 1]; 0 at padding."""
        return self._by_canvas(LatentSpace.decode_here, frozen, tokens, grids)

    def decode_here(
        self,
        frozen: Params,
        tokens: Float[Array, "B N {self.channels}"],
        grids: Int[Array, "B 2"],
    ) -> Float32[Array, "B N 3*{self.patch}**2"]:
        """Like `decode`, but with all pictures on this canvas, so the weights get gradients too."""
        packed = self._lay_out(tokens.astype(jnp.float32), grids)
        packed = self.autoencoder.denormalise(frozen[AUTOENCODER], packed)
        latents = unpack(packed, self.rows, self.cols, self.side).astype(self.compute_dtype)
        images = self.autoencoder.decode(frozen[AUTOENCODER], latents, self.extent(grids))
        return self.to_patches(images, grids, tokens.shape[1])

    def to_images(self, patches: jax.Array, grids: jax.Array) -> Float32[Array, "B h w 3"]:
        """Patches (B, N, 3 P²) as pictures on the canvas; 0 beyond a picture."""
        canvas = self._lay_out(patches.astype(jnp.float32), grids)
        return image_of(canvas, self.rows, self.cols, self.patch)

    def to_patches(
        self, images: Float[Array, "B h w c"], grids: jax.Array, tokens: int
    ) -> Float32[Array, "B {tokens} c*{self.patch}**2"]:
        """Inverse of `to_images`; 0 after a picture's last patch."""
        patches = patches_of(images.astype(jnp.float32), self.patch)
        return self.take_up(patches, grids, tokens)

    def _by_canvas(
        self, run: Callable[..., jax.Array], frozen: Params, tokens: jax.Array, grids: jax.Array
    ) -> jax.Array:
        """`run(space, frozen, tokens, grids)`, each picture in the space of its own canvas."""
        sizes = canvases(self.rows, self.cols, tokens.shape[1]) if self.ragged else []
        if len(sizes) < 2:
            return run(self, frozen, tokens, grids)
        spaces = [dataclasses.replace(self, rows=rows, cols=cols) for rows, cols in sizes]
        # `checkpoint` inside each branch; otherwise each would reserve memory for what all keep.
        branches = [jax.checkpoint(partial(run, space)) for space in spaces]
        tops = jnp.array([rows for rows, _ in sizes[:-1]])

        def one(frozen: Params, tokens: jax.Array, grid: jax.Array) -> jax.Array:
            which = jnp.sum(grid[0] > tops)
            return jax.lax.switch(which, branches, frozen, tokens[None], grid[None])[0]

        def each(frozen: Params, tokens: jax.Array, grids: jax.Array) -> jax.Array:
            return jax.lax.map(lambda picture: one(frozen, *picture), (tokens, grids))

        weights = {AUTOENCODER: frozen[AUTOENCODER]}
        return on_own_pictures(each, weights, tokens, grids)

    def of_grid(self, rows: int, cols: int) -> LatentSpace:
        """The space for batches in which every picture has rows x cols patches."""
        return dataclasses.replace(self, rows=rows, cols=cols, ragged=False)

    def extent(self, grids: jax.Array) -> Extent | None:
        """How much of the canvas each picture covers; None: all of it."""
        return Extent(grids, (self.rows, self.cols)) if self.ragged else None

    def _lay_out(self, tokens: jax.Array, grids: jax.Array) -> jax.Array:
        """Inverse of `take_up`; 0 beyond a picture."""
        if not self.ragged:
            return self._check_full(tokens)
        places = jnp.arange(self.rows * self.cols)
        row, col = places // self.cols, places % self.cols
        index = row * grids[:, 1, None] + col
        inside = (row < grids[:, 0, None]) & (col < grids[:, 1, None])
        return _select(tokens, index, inside)

    def take_up(self, canvas: jax.Array, grids: jax.Array, tokens: int) -> jax.Array:
        """(B, rows · cols, C) in the canvas's raster order -> (B, `tokens`, C) in each picture's
        own; 0 after its last token."""
        if not self.ragged:
            return canvas
        places = token_places(grids, tokens)
        index = places[..., 0] * self.cols + places[..., 1]
        return _select(canvas, index, token_mask(grids, tokens))

    def _check_full(self, tokens: jax.Array) -> jax.Array:
        if tokens.shape[1] != self.rows * self.cols:
            raise ValueError(
                f"the autoencoder takes pictures of {self.rows} x {self.cols} patches here, not of "
                f"{tokens.shape[1]}; resize them, or train with --config.data.policy=bucket"
            )
        return tokens


PaintSpace = PixelSpace | LatentSpace

CANVASES = 3  # most canvases of a space for many shapes; each is compiled separately


@functools.cache
def canvases(rows: int, cols: int, tokens: int, count: int = CANVASES) -> list[tuple[int, int]]:
    """At most `count` canvases for all grids within rows x cols that have at most `tokens` patches.

    Canvases (rows, columns) are sorted by rows, and a grid belongs to the first one with enough
    rows. The largest canvas is as small as possible: 64 x 64 patches, of which a picture may have
    1024, take canvases of 25 x 64, 41 x 39 and 64 x 24. One canvas serves all grids where several
    would save less than a quarter of it.
    """

    def stairs(area: int) -> list[tuple[int, int]]:
        """Canvases of at most `area` patches; [] if `count` of them are not enough."""
        found, top = [], 0
        while top < rows:
            width = max(1, min(cols, tokens // (top + 1)))
            reached = min(rows, area // width)
            if reached <= top or len(found) == count:
                return []
            found.append((reached, width))
            top = reached
        return found

    whole = rows * cols
    return next(filter(None, map(stairs, range(1, 3 * whole // 4))), [(rows, cols)])


def _select(tokens: jax.Array, index: jax.Array, real: jax.Array) -> jax.Array:
    """Rows `index` (B, M) of tokens (B, N, C), 0 where not `real`."""
    index = jnp.clip(index, 0, tokens.shape[1] - 1)
    return jnp.where(real[..., None], jnp.take_along_axis(tokens, index[..., None], axis=1), 0.0)


def pack(
    latents: Shaped[Array, "B h w c"], side: int = 2
) -> Shaped[Array, "B (h//{side})*(w//{side}) c*{side}**2"]:
    """Packs each square of side x side latents into a token, in the order (channel, row, column),
    as FLUX does."""
    batch, height, width, channels = latents.shape
    if height % side or width % side:
        raise ValueError(
            f"latents of {height} x {width} do not pack in squares of {side}; make both sides "
            f"multiples of {side}"
        )
    squares = latents.reshape(batch, height // side, side, width // side, side, channels)
    squares = squares.transpose(0, 1, 3, 5, 2, 4)
    return squares.reshape(batch, -1, side**2 * channels)


def unpack(
    tokens: Shaped[Array, "B {rows*columns} C"], rows: int, columns: int, side: int = 2
) -> Shaped[Array, "B {side*rows} {side*columns} C//{side}**2"]:
    """Inverse of `pack` for a grid of rows x columns tokens."""
    batch = tokens.shape[0]
    squares = tokens.reshape(batch, rows, columns, -1, side, side)
    squares = squares.transpose(0, 1, 4, 2, 5, 3)
    return squares.reshape(batch, side * rows, side * columns, -1)


def image_of(
    patches: Shaped[Array, "B {rows*columns} C"], rows: int, columns: int, patch: int
) -> Shaped[Array, "B {rows*patch} {columns*patch} C//{patch}**2"]:
    """Images from patches, each of them in the order (row, column, channel)."""
    batch = patches.shape[0]
    grid = patches.reshape(batch, rows, columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, rows * patch, columns * patch, -1)


def patches_of(
    images: Shaped[Array, "B h w c"], patch: int
) -> Shaped[Array, "B (h//{patch})*(w//{patch}) c*{patch}**2"]:
    """Inverse of `image_of`; the layout of `data_pipelines.images.patchify`."""
    batch, height, width, channels = images.shape
    grid = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch**2 * channels)
