"""`Example`, which every source yields and every task reads: a picture, its texts, or both."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a picture and its short answer; `kind` groups the scores (count, ...)."""

    question: str
    answer: str
    kind: str


@dataclasses.dataclass(frozen=True)
class Edit:
    """An instruction and the exact picture it leads to.

    `kind` groups scores: recolour, remove, add, replace, move, ...
    """

    instruction: str
    target: np.ndarray  # (H, W, 3) uint8
    kind: str
    caption: str = ""  # caption of the target


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture, its texts, or both.

    Attributes:
      key: stable name of the record, for error messages.
      image: (H, W, 3) uint8 sRGB; None: there is only text. Before they are written to records, the
        image and the targets of edits may be bytes of a picture file (`decoding.load_file`).
      captions: the first is the short one that names what matters. Empty for a picture without
        texts or with questions only. Without a picture, it is the text itself.
      questions: question-answer pairs, may be empty.
      edits: instruction-target pairs, may be empty.
      thought: a plan in words that precedes drawing the picture ("" when the source has none).
    """

    key: str
    image: np.ndarray | None
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    edits: tuple[Edit, ...] = ()
    thought: str = ""
