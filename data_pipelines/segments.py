"""Segments, the parts of a document in reading order, and documents that a source finished itself.

Segments say nothing about tokens: prompts come first, the response follows, and a further prompt
opens the next turn. `sequences.sequence` turns them into slots.
"""

from __future__ import annotations

import dataclasses

import numpy as np

UNDERSTOOD, SOURCE, DRAWN = "understood", "source", "drawn"  # what an image is in a document for


@dataclasses.dataclass(frozen=True)
class Text:
    """A stretch of text. Supervised text is response, the other is prompt.

    `apart`: a prompt that starts anew behind the pictures of the first turn. It and its response
    neither see other turns nor stand behind them, as if each were the only one.
    """

    text: str
    supervised: bool = False
    apart: bool = False


@dataclasses.dataclass(frozen=True)
class Image:
    """A picture (H, W, 3) uint8. `role`: "understood" and "source" (of an edit) belong to a prompt,
    "drawn" to a response.
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
    pictures, an edit with several references. The task `document` reads it, and no other.

    Attributes:
      key: stable name of the record, for error messages.
      segments: at least one; the last is a response.
    """

    key: str
    segments: tuple[Segment, ...]
