"""What rewards look at: the pictures that samples start from, and the samples."""

from __future__ import annotations

import flax.struct
from jaxtyping import Array, Bool, Float, Int, UInt8


@flax.struct.dataclass
class Originals:
    """The picture of each sample.

    Attributes:
      patches: in raster order, (row, column, channel) inside a patch; padded with 0.
      grids: rows and columns of patches.
      questions, answers: token ids of one question about the picture and of its answer, padded with
        -1; None if no reward asks anything.
    """

    patches: UInt8[Array, "B N C"]
    grids: Int[Array, "B 2"]
    questions: Int[Array, "B q"] | None = None
    answers: Int[Array, "B a"] | None = None


@flax.struct.dataclass
class Samples:
    """What a policy made from the originals; None for what it did not make.

    Attributes:
      tokens: token ids of captions, padded with -1, without the token that ended a caption.
      ended: whether the policy ended the caption itself, as a document ends; False if it began to
        draw or was cut off.
      latents: normalised latents of drawn pictures.
      patches: the same pictures in pixels, in [-1, 1].
      chance: a random number in [0, 1) that says nothing about the sample.
    """

    tokens: Int[Array, "B T"] | None = None
    ended: Bool[Array, " B"] | None = None
    latents: Float[Array, "B n d"] | None = None
    patches: Float[Array, "B N C"] | None = None
    chance: Float[Array, " B"] | None = None
