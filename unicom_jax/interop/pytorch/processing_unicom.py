"""Words and pictures to the sequence that a UniCom model reads.

One turn is prompt_open, prompt, prompt_close, response, response_close; a picture stands between
`<|vision_start|>` and `<|vision_end|>`. Words are causal, the tokens of a picture see each other.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .image_processing_unicom import Picture, UnicomImageProcessor

VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
THINK = ("<think>", "</think>")
# Tokens that mark turns and pictures; a user's words may not contain them.
STRUCTURE = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    VISION_START,
    VISION_END,
    "<|image_pad|>",
)
STOPS = ("<|endoftext|>", "<|im_end|>", VISION_START)  # the ends of a stretch of words
UNDERSTOOD, SOURCE, DRAWN = "understood", "source", "drawn"  # what a picture is there for


class Role(enum.IntEnum):
    """What a slot of a sequence holds."""

    PAD = 0
    TEXT = 1
    UNDERSTAND = 2  # features of a picture that is looked at
    CLEAN = 3  # clean latents of a picture that is edited or was drawn before
    NOISY = 4  # noisy latents of a picture that is being drawn


# The roles under which a picture is written, by the model's choice.
UNDERSTANDING_ROLES = {
    "features": (Role.UNDERSTAND,),
    "latents": (Role.UNDERSTAND,),
    "channel_concat": (Role.UNDERSTAND,),
    "sequence_concat": (Role.UNDERSTAND, Role.CLEAN),
}
SOURCE_ROLES = {
    "latents": (Role.CLEAN,),
    "features": (Role.UNDERSTAND,),
    "both": (Role.UNDERSTAND, Role.CLEAN),
}


@dataclasses.dataclass(frozen=True)
class Words:
    """A stretch of text: of the user, or of the model's `response`."""

    text: str
    response: bool = False


@dataclasses.dataclass(frozen=True)
class Image:
    """A picture: "understood" and "source" (of an edit) are the user's, "drawn" is the model's."""

    pixels: Picture
    use: str = UNDERSTOOD

    @property
    def response(self) -> bool:
        return self.use == DRAWN


Segment = Words | Image


def unconditional(segments: Sequence[Segment]) -> list[Segment]:
    """The same context without its words, for classifier-free guidance.

    The user's words become empty (their turn marks stay), the model's vanish, pictures stay.
    """
    silent = [Words("") if isinstance(s, Words) and not s.response else s for s in segments]
    return [s for s in silent if isinstance(s, Image) or not s.response]


@dataclasses.dataclass(frozen=True)
class Block:
    """The slots [start, start + rows * cols) that hold a picture's tokens under one role."""

    image: int
    role: Role
    start: int
    grid: tuple[int, int]


@dataclasses.dataclass
class Prefix:
    """All that precedes an answer, slot by slot.

    Attributes:
      tokens: ids, 0 at the slots of pictures. positions: rotary (y, x) of each slot.
      sees: each slot sees the slots before this one.
      blocks: where pictures lie. images: the pictures, resized.
      next_position: the rotary index of what follows.
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    positions: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    sees: list[int] = dataclasses.field(default_factory=list)
    blocks: list[Block] = dataclasses.field(default_factory=list)
    images: list[np.ndarray] = dataclasses.field(default_factory=list)
    next_position: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def add_words(self, ids: Sequence[int]) -> None:
        for token in ids:
            self.tokens.append(token)
            self.positions.append((self.next_position,) * 2)
            self.sees.append(len(self.tokens))
            self.next_position += 1

    def add_image(self, image: np.ndarray, grids: Sequence[tuple[Role, tuple[int, int]]]) -> None:
        """One picture under several roles: one block in which all see all, at one place."""
        stop = len(self) + sum(rows * cols for _, (rows, cols) in grids)
        for role, grid in grids:
            self.blocks.append(Block(len(self.images), role, len(self), grid))
            self.tokens += [0] * (grid[0] * grid[1])
            self.positions += image_positions(self.next_position, *grid)
            self.sees += [stop] * (grid[0] * grid[1])
        self.images.append(image)
        self.next_position += max(rows * cols for _, (rows, cols) in grids)


def image_positions(start: int, rows: int, cols: int) -> list[tuple[int, int]]:
    """Rotary (y, x) of an image around the diagonal, from text index `start`."""
    y, x = (start + (rows * cols - size) // 2 for size in (rows, cols))
    return [(y + row, x + col) for row in range(rows) for col in range(cols)]


class UnicomProcessor:
    """A tokenizer, an image processor and the sequence format of a model's configuration."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: UnicomImageProcessor,
        sequence: dict[str, Any],
    ) -> None:
        self.tokenizer, self.images, self.sequence = tokenizer, image_processor, sequence
        self.structure = frozenset(tokenizer.convert_tokens_to_ids(list(STRUCTURE)))
        self.stops = tokenizer.convert_tokens_to_ids(list(STOPS))

    @classmethod
    def from_pretrained(cls, folder: str, sequence: dict[str, Any]) -> UnicomProcessor:
        """From a model's folder or its name on the Hub; `sequence` is that of its config."""
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        return cls(tokenizer, UnicomImageProcessor.from_pretrained(folder), sequence)

    def prefix(self, segments: Sequence[Segment], opening: str = "") -> Prefix:
        """The sequence of a conversation so far.

        Args:
          segments: when they end with the user's, the turn is closed and the response starts.
          opening: what the response is made to start with: VISION_START draws at once.

        Raises:
          ValueError: words with tokens that mark turns or pictures.
        """
        prefix, template, previous = Prefix(), self.sequence, None
        for segment in segments:
            if not segment.response and previous is not False:  # a prompt opens a turn
                if previous:
                    prefix.add_words(self.encode(template["response_close"]))
                prefix.add_words(self.encode(template["prompt_open"]))
            if segment.response and previous is False:
                prefix.add_words(self.encode(template["prompt_close"]))
            if isinstance(segment, Words):
                prefix.add_words(self._user_words(segment.text))
            else:
                prefix.add_words(self.encode(VISION_START))
                pixels = self.images.prepare(segment.pixels)
                grid = self.images.grid(pixels)
                roles = self._roles(segment.use)
                prefix.add_image(pixels, [(role, self.token_grid(grid, role)) for role in roles])
                prefix.add_words(self.encode(VISION_END))
            previous = segment.response
        if previous is False:
            prefix.add_words(self.encode(template["prompt_close"]))
        prefix.add_words(self.encode(opening))
        return prefix

    def token_grid(self, grid: tuple[int, int], role: Role) -> tuple[int, int]:
        """Rows and columns of the tokens that a picture of `grid` patches has under a role."""
        pool = self.sequence["pool"]
        pooled = role != Role.UNDERSTAND or self.sequence["understanding"] == "latents"
        return (grid[0] // pool, grid[1] // pool) if pooled else grid

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []

    def decode(self, tokens: Sequence[int]) -> str:
        """Words of tokens; of special tokens only those around a thought are spelt."""
        think = {self.tokenizer.convert_tokens_to_ids(spelling): spelling for spelling in THINK}
        pieces, run = [], []
        for token in tokens:
            if token in think:
                pieces += [self._spell(run), think[token]]
                run = []
            else:
                run.append(token)
        return "".join([*pieces, self._spell(run)]).strip()

    def _spell(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _user_words(self, text: str) -> list[int]:
        ids = self.encode(text)
        if not self.structure.isdisjoint(ids):
            raise ValueError(
                f"the text {text[:60]!r} contains tokens that mark turns or images; remove their "
                "spellings from it"
            )
        return ids

    def _roles(self, use: str) -> tuple[Role, ...]:
        if use == DRAWN:
            return (Role.CLEAN,)
        if use == SOURCE:
            return SOURCE_ROLES[self.sequence["edit_source"]]
        return UNDERSTANDING_ROLES[self.sequence["understanding"]]
