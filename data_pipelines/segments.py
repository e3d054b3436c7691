"""Segments, the parts of a document in reading order, and documents that a source provides whole.

Segments are independent of tokens: prompts come first, the response follows, and a further prompt
opens the next turn. `sequences.sequence` converts them into slots.
"""

from __future__ import annotations

import dataclasses

import numpy as np

UNDERSTOOD, SOURCE, DRAWN = "understood", "source", "drawn"  # the purpose of an image in a document


@dataclasses.dataclass(frozen=True)
class Text:
    """A piece of text: a response if supervised, else a prompt.

    `apart`: a prompt that restarts right after the pictures of the first turn. It and its response
    neither see other turns nor take positions after them, as if this turn were the only one.
    """

    text: str
    supervised: bool = False
    apart: bool = False


@dataclasses.dataclass(frozen=True)
class Image:
    """A picture, (H, W, 3) uint8. The roles "understood" and "source" (of an edit) belong to a
    prompt, "drawn" to a response.
    """

    pixels: np.ndarray
    role: str = UNDERSTOOD

    def __post_init__(self) -> None:
        if self.role not in (UNDERSTOOD, SOURCE, DRAWN):
            raise ValueError(
                f"image role {self.role!r} is unknown; choose {UNDERSTOOD}, {SOURCE} or {DRAWN}"
            )


Segment = Text | Image


def is_response(segment: Segment) -> bool:
    return segment.supervised if isinstance(segment, Text) else segment.role == DRAWN


@dataclasses.dataclass(frozen=True)
class FinishedDocument:
    """A document as its source wrote it: an interleaved web page, a conversation about several
    pictures, an edit with several references. Only the task `document` reads it.

    Attributes:
      key: stable name of the record, for error messages.
      segments: at least one; the last is a response.
    """

    key: str
    segments: tuple[Segment, ...]
