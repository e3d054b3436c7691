"""What rewards look at: the pictures that samples start from, and the samples."""

from __future__ import annotations

import flax.struct
from jaxtyping import Array, Bool, Float, Int, UInt8


@flax.struct.dataclass
class Originals:
    """The picture of each sample.

    Attributes:
      patches: raster order, (row, column, channel) inside a patch, 0 behind the last one.
      grids: rows and columns of patches.
      questions, answers: token ids of one question about the picture and of its answer, -1 behind
        them; None where the reward asks nothing.
    """

    patches: UInt8[Array, "B N C"]
    grids: Int[Array, "B 2"]
    questions: Int[Array, "B q"] | None = None
    answers: Int[Array, "B a"] | None = None


@flax.struct.dataclass
class Samples:
    """What a policy made of the originals. What it did not make is None.

    Attributes:
      tokens: of captions, -1 behind the last one; what ended a caption is none of them.
      ended: whether the policy ended the caption itself, as a document ends: not where it would
        have drawn, or was cut off.
      latents: of drawn pictures, normalised.
      patches: the same pictures, in [-1, 1].
      chance: a random number in [0, 1) that says nothing about the sample.
    """

    tokens: Int[Array, "B T"] | None = None
    ended: Bool[Array, " B"] | None = None
    latents: Float[Array, "B n d"] | None = None
    patches: Float[Array, "B N C"] | None = None
    chance: Float[Array, " B"] | None = None
