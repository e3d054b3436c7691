"""From tokens to words: what ends an answer, and pieces of text as they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int32

from data_pipelines.sequences.tokenizer import Tokenizer

# Called with the place of an answer in its request, and the new piece.
OnText = Callable[[int, str], None]

CUT_OFF = "�"  # what the first bytes of an incomplete character decode to


class Words:
    """Texts of the tokens that a model writes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.stops = (tokenizer.end_of_document, tokenizer.turn_end, tokenizer.vision_start)
        think = (tokenizer.think_start, tokenizer.think_end)
        self._spelt = dict(zip(think, ("<think>", "</think>"), strict=True))

    def text(self, tokens: Int32[np.ndarray, " tokens"]) -> str:
        """Text without special tokens, except the marks of a thought."""
        pieces: list[str] = []
        run: list[int] = []
        for token in map(int, tokens):
            if token in self._spelt:
                pieces += [self.tokenizer.decode(run), self._spelt[token]]
                run = []
            else:
                run.append(token)
        return "".join([*pieces, self.tokenizer.decode(run)]).strip()

    def draws(self, tokens: Int32[np.ndarray, " tokens"]) -> bool:
        """Whether the model ended its words in order to draw."""
        return len(tokens) > 0 and int(tokens[-1]) == self.tokenizer.vision_start

    @staticmethod
    def until_stop(text: str, stop: str | Sequence[str]) -> str:
        """`text` up to the first of the stop strings."""
        ends = [text.find(one) for one in stop_strings(stop)]
        found = [end for end in ends if end >= 0]
        return text[: min(found)].rstrip() if found else text


class Listener:
    """Checks the rows of a batch after every token: passes on new text and finds stop strings.

    Args:
      on_text: see `OnText`; None: text is not passed on.
      places: the rows' places in the request. Rows that only pad a batch repeat an earlier place;
        their text is not passed on.
    """

    def __init__(
        self, words: Words, on_text: OnText | None, stop: str | Sequence[str], places: Sequence[int]
    ) -> None:
        self.words, self.on_text, self.places = words, on_text, list(places)
        self.stop = stop_strings(stop)
        self.sent = [""] * len(places)
        self.ended = np.zeros(len(places), bool)
        # The end of a text may be the start of a stop string.
        self.unsure = max(map(len, self.stop), default=1) - 1

    def update(self, tokens: Int32[np.ndarray, "B room"]) -> Bool[np.ndarray, " B"]:
        """Which rows contain a stop string."""
        for row in self._open_rows():
            written, text = self._read(tokens[row])
            whole = self.words.until_stop(text, self.stop)
            self.ended[row] = whole != text
            final = self.ended[row] or (len(written) and int(written[-1]) in self.words.stops)
            sure = whole if final else whole[: len(whole) - self.unsure].rstrip(CUT_OFF)
            self._send(row, sure)
        return np.array([self.ended[self.places.index(place)] for place in self.places])

    def close(self, tokens: Int32[np.ndarray, "B room"]) -> None:
        """Passes on what was held back because more might follow."""
        for row in self._open_rows():
            self._send(row, self.words.until_stop(self._read(tokens[row])[1], self.stop))

    def _open_rows(self) -> list[int]:
        firsts = {place: row for row, place in reversed(list(enumerate(self.places)))}
        return [row for row in sorted(firsts.values()) if not self.ended[row]]

    def _read(self, row: Int32[np.ndarray, " room"]) -> tuple[Int32[np.ndarray, " tokens"], str]:
        written = row[row >= 0]
        return written, self.words.text(written)

    def _send(self, row: int, text: str) -> None:
        if self.on_text is not None and len(text) > len(self.sent[row]):
            self.on_text(self.places[row], text[len(self.sent[row]) :])
            self.sent[row] = text


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """A tuple of stop strings, from one or several.

    Raises:
      ValueError: one is empty, which would end every answer.
    """
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in strings:
        raise ValueError("a stop string is empty; give at least one character")
    return strings
