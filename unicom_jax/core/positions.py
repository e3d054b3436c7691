"""Rotary positions: for the unified model's sequence (`rope`), and one per axis (`axial_rope`).

In the sequence, positions have two dimensions. Text at index p has position (p, p). An image token
has its own row and column, centred on the diagonal point that the image's middle token would have
as text, or, optionally, a position on the diagonal as text has. The frequencies of a head rotate
alternately with y and with x, so on the diagonal the rotation is RoPE (Su et al., arXiv:2104.09864)
and weights trained with RoPE keep their meaning.

Models of the Qwen2-VL family have three dimensions instead (time, row, column), each of which turns
its own section of the frequencies (M-RoPE, arXiv:2409.12191 §2.1; `picture_positions`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Real

# Cosines and sines of the rotation angles; half = D / 2 for a head of D channels.
Turns = tuple[Float32[Array, "B S half"], Float32[Array, "B S half"]]


SCALINGS = ("none", "linear", "yarn")
# Full rotations within the trained length: channel pairs with more than MANY_TURNS keep their
# frequency, those with fewer than FEW_TURNS are slowed by the whole factor (YaRN, section 3.2).
MANY_TURNS, FEW_TURNS = 32, 1


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are slowed down for texts longer than those in training.

    Attributes:
      kind: "none"; "linear": all frequencies divided by `factor` (Chen et al., arXiv:2306.15595);
        "yarn": low frequencies only, with a ramp in between, and cos and sin enlarged by
        0.1 ln(factor) + 1 (Peng et al., arXiv:2309.00071).
      factor: by how much the context grows, at least 1.
      length: tokens in the context that the model was trained with ("yarn" only).
    """

    kind: str = "none"
    factor: float = 1.0
    length: int = 0

    def __post_init__(self) -> None:
        if self.kind not in SCALINGS:
            raise ValueError(f"rope_scaling={self.kind!r} is unknown; use one of {SCALINGS}")
        if self.factor < 1.0 or (self.kind == "none" and self.factor != 1.0):
            raise ValueError(
                f"rope_factor={self.factor} with rope_scaling={self.kind!r}; it has to be 1 for "
                "'none' and at least 1 for the others"
            )
        if (self.kind == "yarn") != (self.length > 0):
            raise ValueError(
                f"rope_length={self.length} with rope_scaling={self.kind!r}; give the trained "
                "context length for 'yarn', and 0 for the others"
            )

    @property
    def magnitude(self) -> float:
        """The factor of cos and sin."""
        return 0.1 * math.log(self.factor) + 1.0 if self.kind == "yarn" else 1.0

    def frequencies(self, head_dim: int, theta: float) -> Float32[np.ndarray, " half"]:
        """Angle per position of each channel pair; theta ** (-2 i / head_dim) without scaling."""
        plain = theta ** (-2.0 * np.arange(head_dim // 2) / head_dim)
        if self.kind != "yarn":
            return (plain / self.factor).astype(np.float32)

        def pair_with(turns: float) -> float:
            """The (fractional) channel pair with `turns` full rotations in the trained context."""
            return head_dim * math.log(self.length / (2 * math.pi * turns)) / (2 * math.log(theta))

        first = max(math.floor(pair_with(MANY_TURNS)), 0)
        last = min(math.ceil(pair_with(FEW_TURNS)), head_dim - 1)
        slowed = np.clip((np.arange(head_dim // 2) - first) / ((last - first) or 1e-3), 0.0, 1.0)
        return (plain * (1.0 - slowed) + plain / self.factor * slowed).astype(np.float32)


UNSCALED = RopeScaling()


def rope(
    positions: Real[Array, "B S axes"],
    head_dim: int,
    theta: float,
    scaling: RopeScaling = UNSCALED,
    sections: tuple[int, ...] = (),
) -> Turns:
    """(cos, sin) of the rotation angles.

    Args:
      positions: (y, x) or, with sections, a coordinate for each of them.
      head_dim: even number of channels of a head.
      theta: base; frequency i is theta ** (-2 i / head_dim).
      scaling: for contexts longer than the model was trained with.
      sections: (): even frequencies rotate with y, odd ones with x. Otherwise how many successive
        frequencies rotate with each coordinate; they sum to head_dim / 2.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions turn pairs of channels; head_dim {head_dim} is odd")
    if positions.shape[-1] != (axes := len(sections) or 2):
        raise ValueError(
            f"positions have {positions.shape[-1]} coordinates, but rotary sections {sections} "
            f"take {axes}"
        )
    frequencies = scaling.frequencies(head_dim, theta)
    if sections:
        angles = _by_axis(positions, np.split(frequencies, np.cumsum(sections[:-1])))
    else:
        y, x = positions[..., :1].astype(jnp.float32), positions[..., 1:].astype(jnp.float32)
        angles = jnp.where(np.arange(head_dim // 2) % 2 == 0, y, x) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if scaling.magnitude == 1.0:
        return cos, sin
    return cos * scaling.magnitude, sin * scaling.magnitude


def axial_rope(
    places: Real[Array, "B S {len(dims)}"], dims: tuple[int, ...], theta: float
) -> Turns:
    """(cos, sin) for heads whose first `dims[0]` channels rotate with axis 0, and so on.

    Args:
      places: a coordinate per axis.
      dims: even number of channels for each axis; they sum to the head's D.
      theta: base; frequency i of an axis of d channels is theta ** (-2 i / d).
    """
    if any(dim % 2 for dim in dims):
        raise ValueError(f"rotary positions turn pairs of channels; one of {dims} is odd")
    frequencies = [(theta ** (-2.0 * np.arange(dim // 2) / dim)).astype(np.float32) for dim in dims]
    angles = _by_axis(places, frequencies)
    return jnp.cos(angles), jnp.sin(angles)


def _by_axis(
    places: Real[Array, "B S axes"], frequencies: Sequence[Float32[np.ndarray, " part"]]
) -> Float32[Array, "B S half"]:
    """Angles of the frequencies of every axis, one axis after the other."""
    angles = [
        places[..., axis, None].astype(jnp.float32) * part for axis, part in enumerate(frequencies)
    ]
    return jnp.concatenate(angles, axis=-1)


def apply_rope(
    x: Float[Array, "B S H D"], cos: Float32[Array, "B S D/2"], sin: Float32[Array, "B S D/2"]
) -> Float[Array, "B S H D"]:
    """Rotates channel pairs (i, i + D/2) of x, as Qwen does."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(_turn(first, second, cos, sin), axis=-1).astype(x.dtype)


def apply_paired_rope(
    x: Float[Array, "B S H D"], cos: Float32[Array, "B S D/2"], sin: Float32[Array, "B S D/2"]
) -> Float[Array, "B S H D"]:
    """Rotates channel pairs (2i, 2i + 1) of x, as FLUX does."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    turned = jnp.stack(_turn(pairs[..., 0], pairs[..., 1], cos, sin), axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def _turn(
    first: jax.Array, second: jax.Array, cos: jax.Array, sin: jax.Array
) -> tuple[jax.Array, jax.Array]:
    cos, sin = cos[:, :, None], sin[:, :, None]
    return first * cos - second * sin, second * cos + first * sin


IMAGE_POSITIONS = ("grid", "plain", "mrope")


def image_positions(
    start: int, rows: int, cols: int, kind: str = "grid"
) -> Int32[np.ndarray, "{rows*cols} 2"]:
    """(y, x) of an image whose first token has text index `start`.

    Text after it continues `position_count` indices later; n = rows * cols.

    Args:
      kind: "grid": y = start + (n - rows) // 2 + row, x = start + (n - cols) // 2 + column.
        "plain": y = x = start + index in raster order, as for text (Cheers, arXiv:2603.12793).
        "mrope": y = start + row, x = start + column, the last two coordinates of
        `picture_positions`; the first one is `start`.
    """
    if kind not in IMAGE_POSITIONS:
        raise ValueError(
            f"image_positions={kind!r} is unknown; use one of {', '.join(IMAGE_POSITIONS)}"
        )
    tokens = rows * cols
    if kind == "plain":
        return np.repeat(start + np.arange(tokens, dtype=np.int32)[:, None], 2, axis=1)
    row, column = np.divmod(np.arange(tokens), cols)
    if kind == "mrope":
        return (start + np.stack([row, column], axis=-1)).astype(np.int32)
    y = start + (tokens - rows) // 2 + row
    x = start + (tokens - cols) // 2 + column
    return np.stack([y, x], axis=-1).astype(np.int32)


def position_count(rows: int, cols: int, kind: str = "grid") -> int:
    """How many rotary indices an image takes up; `kind` as for `image_positions`."""
    return max(rows, cols) if kind == "mrope" else rows * cols


def picture_positions(
    is_picture: Bool[Array, "B S"],
    used: Bool[Array, "B S"],
    grids: Int[Array, "B M 2"],
) -> tuple[Int32[Array, "B S 3"], Int32[Array, " B"], Int32[Array, "B S 2"]]:
    """Positions (time, row, column) of text with still pictures in it, as in Qwen2-VL.

    Text counts up along all three axes. A picture that starts at p has the positions
    (p, p + row, p + column), and what follows it continues at p + max(rows, columns).

    Args:
      is_picture: slots that hold a token of a picture, the first picture's first, in raster order.
      used: slots in use; the others get position 0 and do not count.
      grids: (rows, columns) of every picture in tokens; (0, 0): no picture.

    Returns:
      The positions; that of the next text token of each row; and for every slot the number of the
      picture in its row and of the token in the picture (0 for text).
    """
    is_picture = is_picture & used
    sizes = grids[..., 0] * grids[..., 1]
    stops = jnp.cumsum(sizes, axis=1)
    number = jnp.cumsum(is_picture, axis=1) - 1  # among all picture tokens of the row
    # Slots before the first picture have -1, those after the last one its number plus one or less.
    picture = jnp.sum(number[..., None] >= stops[:, None], axis=-1)
    picture = jnp.where(is_picture, jnp.minimum(picture, grids.shape[1] - 1), 0)

    def of_picture(values: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, picture, axis=1)

    token = jnp.where(is_picture, number - of_picture(stops - sizes), 0)
    columns = jnp.maximum(of_picture(grids[..., 1]), 1)
    last = token == of_picture(sizes) - 1
    advance = jnp.where(is_picture, jnp.where(last, of_picture(grids.max(axis=-1)), 0), 1)
    advance = jnp.where(used, advance, 0)
    total = jnp.cumsum(advance, axis=1)
    # A picture's tokens share a start, since only the last one advances.
    start = (total - advance)[..., None]
    offset = jnp.stack([jnp.zeros_like(token), token // columns, token % columns], axis=-1)
    positions = jnp.where(used[..., None], start + offset, 0)
    found = jnp.stack([picture, token], axis=-1)
    return positions.astype(jnp.int32), total[:, -1].astype(jnp.int32), found.astype(jnp.int32)
