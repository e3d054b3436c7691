"""Pictures of several shapes on one canvas: how far each reaches, at any resolution."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unicom_jax.core.attention import padding_mask
from unicom_jax.core.batch import MaskIntervals


class Extent(NamedTuple):
    """Which part of a canvas belongs to the picture in its upper left corner.

    Attributes:
      grids: rows and columns of a picture, at least 1, in units such as patches.
      canvas: rows and columns of the canvas in the same units.
    """

    grids: Int[Array, "B 2"]
    canvas: tuple[int, int]

    def mask(self, x: Float[Array, "B h w c"]) -> Bool[Array, "B h w 1"]:
        """True where x belongs to the picture."""

        def inside(axis: int) -> jax.Array:
            size = x.shape[1 + axis]
            places = jnp.arange(size) * self.canvas[axis]
            return places < self.grids[:, axis, None] * size

        return (inside(0)[:, :, None] & inside(1)[:, None, :])[..., None]

    def gather(self, x: Float[Array, "B h w c"]) -> tuple[Float[Array, "B h*w c"], MaskIntervals]:
        """Places of x as keys, the picture's first, and a mask by which all queries see only those.

        Attention does not depend on the order of its keys, and its masks are intervals.
        """
        inside = self.mask(x).reshape(x.shape[0], -1)
        order = jnp.argsort(~inside, axis=1, stable=True)
        places = x.reshape(*inside.shape, -1)
        first = jnp.take_along_axis(places, order[..., None], axis=1)
        return first, padding_mask(inside.sum(1), inside.shape[1])
