"""`MixedBatch`: the only thing that crosses from the data pipelines to the models."""

from __future__ import annotations

import enum
from typing import Any

import flax.struct
from jaxtyping import Float, Float32, Int32, UInt8

Array = Any  # np.ndarray on the host, jax.Array on the device


class Role(enum.IntEnum):
    """What a sequence slot holds."""

    PAD = 0
    TEXT = 1
    UNDERSTAND = 2  # raw features Z of an image to understand
    CLEAN = 3  # clean latents z̃ (t = 1) of an image that is edited or was drawn before
    NOISY = 4  # noisy latents z̃_t of an image that is being drawn


@flax.struct.dataclass
class MaskIntervals:
    """Who sees whom, as two half-open intervals of key slots per query slot.

    visible(i, j) = context_start[i] <= j < context_stop[i]  or  span_start[i] <= j < span_stop[i]

    One packed row `a b [x x] c | [n n]`: text a, b, a clean image x of two tokens, text c, and the
    noisy copy n of x, which is placed at the end of the document and keeps the positions of x:

             a b x x c n n
        a    1 . . . . . .      text:   context = [document start, i + 1)
        b    1 1 . . . . .
        x    1 1 1 1 . . .      clean:  context = [document start, image end)
        x    1 1 1 1 . . .
        c    1 1 1 1 1 . .      text after an image sees the clean copy, never the noisy one
        n    1 1 . . . 1 1      noisy:  context = [document start, place of x), span = itself
        n    1 1 . . . 1 1

    Several separate questions may follow one picture. Each sees the picture and itself: context =
    [document start, picture end), span = [its own start, i + 1).
    Padding slots have four zeros: they see nothing and nobody sees them.
    """

    context_start: Int32[Array, "B S"]
    context_stop: Int32[Array, "B S"]
    span_start: Int32[Array, "B S"]
    span_stop: Int32[Array, "B S"]


@flax.struct.dataclass
class MixedBatch:
    """Packed rows of text and images. docs/index.md explains the letters in shapes.

    Attributes:
      tokens: token ids; 0 at image and padding slots.
      positions: (y, x), rotary; equal at text slots.
      mask: two intervals per slot.
      roles: a `Role` per slot.
      image_index: which of the row's images (at NOISY slots: which of its draws) an image slot
        belongs to; 0 elsewhere.
      image_token: which token of that image or draw; 0 elsewhere.
      targets: token to be predicted at each slot.
      target_weights: 0 where nothing is predicted.
      patches: raster order, each of the C = patch * patch * 3 numbers flattened as (row, column,
        channel); None where there are features.
      grids: (rows, columns) of patches; (0, 0) where there is no image.
      draws: the image of the row that each draw shows; -1 where there is no draw. A draw has its
        own noise and time; several draws may share an image, which is then encoded once.
      features: the frozen encoder's features of the patches where they were computed beforehand, in
        float32, bfloat16 or float16; 0 after an image's last patch. Otherwise None.
      parts: number of each slot's source and task, in the order of `mixture_parts`; 0 at padding,
        -1 where unknown. None: known for no slot.
    """

    tokens: Int32[Array, "B S"]
    positions: Int32[Array, "B S 2"]
    mask: MaskIntervals
    roles: Int32[Array, "B S"]
    image_index: Int32[Array, "B S"]
    image_token: Int32[Array, "B S"]
    targets: Int32[Array, "B S"]
    target_weights: Float32[Array, "B S"]
    patches: UInt8[Array, "B M N C"] | None
    grids: Int32[Array, "B M 2"]
    draws: Int32[Array, "B draws"]
    features: Float[Array, "B M N F"] | None = None
    parts: Int32[Array, "B S"] | None = None
