"""What the texts of every record have to be, whatever source it comes from and whatever stage
reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from data_pipelines.examples import Example
from data_pipelines.faults import RecordError
from data_pipelines.marks import SPECIAL_TOKENS
from data_pipelines.segments import FinishedDocument, Text, is_response

# Spelled in a text they would become the tokens that mark turns, images and thoughts.
_MARKS = re.compile("|".join(map(re.escape, SPECIAL_TOKENS.values())))


def check_texts(example: Example, where: str, captioned: bool = False) -> None:
    """Checks all texts of an example.

    Args:
      captioned: it needs a caption even where it has a picture or questions.

    Raises:
      RecordError: a caption is blank or missing, or a text cannot be written as UTF-8 or spells a
        mark of the model; the message begins with `where`.
    """
    other = not captioned and (example.image is not None or example.questions)
    if not all([example.captions or other, *(text.strip() for text in example.captions)]):
        raise RecordError(f"{where}: empty caption: give a text or remove the record")
    _check_each(_texts(example), where)


def check_segments(document: FinishedDocument, where: str) -> None:
    """Checks all texts of a finished document, and how it ends.

    Raises:
      RecordError: it does not end with a response, a text is blank, cannot be written as UTF-8 or
        spells a mark of the model; the message begins with `where`.
    """
    if not document.segments or not is_response(document.segments[-1]):
        raise RecordError(
            f"{where}: the document ends without a response or a drawn picture: end it with one, "
            "or remove it"
        )
    texts = [segment.text for segment in document.segments if isinstance(segment, Text)]
    if not all(text.strip() for text in texts):
        raise RecordError(f"{where}: empty text: remove its segment")
    _check_each(texts, where)


def _check_each(texts: Iterable[str], where: str) -> None:
    for text in texts:
        if found := _MARKS.search(text):
            raise RecordError(
                f"{where}: a text contains {found[0]!r}, a token that marks turns, images or "
                "thoughts: remove it from the text, or remove the record"
            )
        if not text.isascii():
            _check_utf8(text, where)


def _check_utf8(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(
            f"{where}: a text contains an incomplete character ({text[error.start]!a}) at "
            f"position {error.start}: cut texts between characters, or remove the record"
        ) from None


def _texts(example: Example) -> Iterator[str]:
    yield from example.captions
    for question in example.questions:
        yield from (question.question, question.answer, question.kind)
    for edit in example.edits:
        yield from (edit.instruction, edit.kind, edit.caption)
    yield example.thought
