"""`MixedBatch`: the only thing that crosses from the data pipelines to the models."""

from __future__ import annotations

import enum
from typing import Any

import flax.struct

Array = Any  # np.ndarray on the host, jax.Array on the device


class Role(enum.IntEnum):
    """What a sequence slot holds."""

    PAD = 0
    TEXT = 1
    UNDERSTAND = 2  # raw features Z of an image that is looked at
    CLEAN = 3  # clean latents z̃ (t = 1) of an image that is edited or was drawn before
    NOISY = 4  # noisy latents z̃_t of an image that is being drawn


@flax.struct.dataclass
class MaskIntervals:
    """Who sees whom, as two half-open intervals of key slots per query slot.

    visible(i, j) = context_start[i] <= j < context_stop[i]  or  span_start[i] <= j < span_stop[i]

    One packed row `a b [x x] c | [n n]`: text a, b, a clean image x of two tokens, text c, and the
    noisy copy n of x, which stands at the end of the document and keeps the positions of x:

             a b x x c n n
        a    1 . . . . . .      text:   context = [document start, i + 1)
        b    1 1 . . . . .
        x    1 1 1 1 . . .      clean:  context = [document start, image end)
        x    1 1 1 1 . . .
        c    1 1 1 1 1 . .      text after an image sees the clean copy, never the noisy one
        n    1 1 . . . 1 1      noisy:  context = [document start, place of x), span = itself
        n    1 1 . . . 1 1

    Padding slots have four zeros: they see nothing and nobody sees them.
    All fields are (B, S) int32.
    """

    context_start: Array
    context_stop: Array
    span_start: Array
    span_stop: Array


@flax.struct.dataclass
class MixedBatch:
    """Packed rows of text and images: B rows, S slots, M images a row, N patches an image.

    Attributes:
      tokens: (B, S) int32 token ids; 0 at image and padding slots.
      positions: (B, S, 2) int32 (y, x) rotary positions; equal at text slots.
      mask: two intervals per slot.
      roles: (B, S) int32, a `Role` per slot.
      image_index: (B, S) int32, which of the row's images an image slot belongs to; 0 elsewhere.
      image_token: (B, S) int32, which token of that image; 0 elsewhere.
      targets: (B, S) int32 token to be predicted at each slot.
      target_weights: (B, S) float32, 0 where nothing is predicted.
      patches: (B, M, N, patch * patch * 3) uint8, raster order, each patch flattened as
        (row, column, channel); None where there are features.
      grids: (B, M, 2) int32 (rows, columns) of patches; (0, 0) where there is no image.
      features: (B, M, N, D) what the frozen encoder makes of the patches, where it was computed
        before, in float32, bfloat16 or float16; 0 behind an image's last patch. Else None.
    """

    tokens: Array
    positions: Array
    mask: MaskIntervals
    roles: Array
    image_index: Array
    image_token: Array
    targets: Array
    target_weights: Array
    patches: Array | None
    grids: Array
    features: Array | None = None
