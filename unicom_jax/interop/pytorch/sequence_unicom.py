"""The sequence that a UniCom model reads: words and pictures, slot by slot.

One turn is prompt_open, prompt, prompt_close, response, response_close; a picture is between
`<|vision_start|>` and `<|vision_end|>`. Words are causal, the tokens of a picture see each other
(in the Qwen2.5-VL family they are causal too).
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

Picture = Any  # a PIL image, an (H, W, 3) uint8 array, or the path or address of a file
Grid = tuple[int, int]
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD = "<|image_pad|>"
NO_MEAN = "<no_mean>"  # for a word that is left out, where a model has it
THINK = ("<think>", "</think>")
# Tokens that mark turns and pictures; a user's words may not contain them.
STRUCTURE = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    VISION_START,
    VISION_END,
    IMAGE_PAD,
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
    grid: Grid


@dataclasses.dataclass
class Prefix:
    """All that precedes an answer, slot by slot.

    Attributes:
      kind: of the positions, see `Format`.
      tokens: ids, 0 at the slots of pictures. positions: rotary coordinates of each slot.
      sees: each slot sees the slots before this one.
      blocks: where pictures are. images: the pictures, resized.
      next_position: the rotary index of what follows.
    """

    kind: str = "grid"
    tokens: list[int] = dataclasses.field(default_factory=list)
    positions: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    sees: list[int] = dataclasses.field(default_factory=list)
    blocks: list[Block] = dataclasses.field(default_factory=list)
    images: list[np.ndarray] = dataclasses.field(default_factory=list)
    next_position: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def add_words(self, ids: Sequence[int]) -> None:
        for token in ids:
            self.tokens.append(token)
            self.positions.append((self.next_position,) * position_axes(self.kind))
            self.sees.append(len(self.tokens))
            self.next_position += 1

    def add_image(self, image: np.ndarray, grids: Sequence[tuple[Role, Grid]]) -> None:
        """One picture under several roles: one block at one place, in which all see all unless
        pictures are causal."""
        stop = len(self) + sum(rows * cols for _, (rows, cols) in grids)
        for role, grid in grids:
            start, count = len(self), grid[0] * grid[1]
            self.blocks.append(Block(len(self.images), role, start, grid))
            self.tokens += [0] * count
            self.positions += image_positions(self.next_position, *grid, self.kind)
            own = range(start + 1, start + count + 1)
            self.sees += own if pictures_are_causal(self.kind) else [stop] * count
        self.images.append(image)
        self.next_position += max(position_count(*grid, self.kind) for _, grid in grids)


def image_positions(start: int, rows: int, cols: int, kind: str = "grid") -> list[tuple[int, ...]]:
    """Rotary coordinates of an image from text index `start`, of a kind of `Format`."""
    places = [(row, col) for row in range(rows) for col in range(cols)]
    if kind == "mrope":
        return [(start, start + row, start + col) for row, col in places]
    if kind == "plain":
        return [(start + place,) * 2 for place in range(len(places))]
    y, x = (start + (rows * cols - size) // 2 for size in (rows, cols))
    return [(y + row, x + col) for row, col in places]


def position_count(rows: int, cols: int, kind: str = "grid") -> int:
    """How many rotary indices an image takes up."""
    return max(rows, cols) if kind == "mrope" else rows * cols


def position_axes(kind: str) -> int:
    """Coordinates of a position."""
    return 3 if kind == "mrope" else 2


def pictures_are_causal(kind: str) -> bool:
    """Whether a slot of a picture sees only the slots up to itself, as Qwen2.5-VL reads them."""
    return kind == "mrope"


@dataclasses.dataclass(frozen=True)
class Format:
    """How a model's configuration writes pictures and turns (`config.sequence`).

    Attributes:
      understanding, edit_source: the roles of a picture that is looked at, and of one that is
        edited. pool: patches on a side of a latent token.
      prompt_open, prompt_close, response_close: the marks of a turn.
      fold: latents on a side of a slot.
      positions: of a picture's slots. "grid": (y, x) around the diagonal point that its middle
        would have as text; "plain": one slot after the other on the diagonal, as words have them;
        "mrope": (time, y, x), which start at the picture's text index (Qwen2-VL, arXiv 2409.12191).
      unconditional: how a context without its words is written: "empty" turns, or its words
        "masked" by `<no_mean>`.
      edit_words: where the words of an edit are, "after" or "before" the picture to edit.
    """

    understanding: str
    edit_source: str
    pool: int
    prompt_open: str
    prompt_close: str
    response_close: str
    fold: int = 1
    positions: str = "grid"
    unconditional: str = "empty"
    edit_words: str = "after"

    def in_order(self, segments: Sequence[Segment]) -> list[Segment]:
        """The segments as they are written: `edit_words` may move the words of an edit."""
        ordered: list[Segment] = []
        for _, group in itertools.groupby(segments, lambda segment: segment.response):
            turn = list(group)
            edits = any(isinstance(segment, Image) and segment.use == SOURCE for segment in turn)
            if edits and self.edit_words == "before":
                turn.sort(key=lambda segment: isinstance(segment, Image))
            ordered += turn
        return ordered

    def roles(self, use: str) -> tuple[Role, ...]:
        """The roles under which a picture is written."""
        if use == DRAWN:
            return (Role.CLEAN,)
        if use == SOURCE:
            return SOURCE_ROLES[self.edit_source]
        return UNDERSTANDING_ROLES[self.understanding]

    def slot_grid(self, grid: Grid, role: Role) -> Grid:
        """Rows and columns of the slots that a picture of `grid` patches takes under a role."""
        rows, cols = self.token_grid(grid, role)
        return rows // self.fold, cols // self.fold

    def token_grid(self, grid: Grid, role: Role) -> Grid:
        """Rows and columns of the tokens that a picture of `grid` patches has under a role."""
        pooled = role != Role.UNDERSTAND or self.understanding == "latents"
        return (grid[0] // self.pool, grid[1] // self.pool) if pooled else grid

    def grids(self, grid: Grid, use: str = UNDERSTOOD) -> list[tuple[Role, Grid]]:
        """All roles of a picture of `grid` patches, in the order of their slots."""
        return [(role, self.slot_grid(grid, role)) for role in self.roles(use)]

    def slots(self, grid: Grid, use: str = UNDERSTOOD) -> int:
        """How many slots such a picture takes."""
        return sum(rows * cols for _, (rows, cols) in self.grids(grid, use))

    def chat_template(self) -> str:
        """The same turns as a Jinja template of transformers.

        Messages have the role "user" or "assistant"; words of a "system" open the user's turn. A
        picture is one `<|image_pad|>`, which the processor multiplies by its number of slots.
        """
        marks = {name: json.dumps(text) for name, text in dataclasses.asdict(self).items()}
        picture = json.dumps(VISION_START + IMAGE_PAD + VISION_END)
        return CHAT_TEMPLATE.format(picture=picture, **marks)


# Two consecutive messages of one role share a turn.
CHAT_TEMPLATE = """\
{{%- for message in messages -%}}
  {{%- set answers = message.role == "assistant" -%}}
  {{%- set before = "" if loop.first else messages[loop.index0 - 1].role -%}}
  {{%- set after = "" if loop.last else messages[loop.index0 + 1].role -%}}
  {{%- if message.role not in ("system", "user", "assistant") -%}}
    {{{{- raise_exception("the roles of messages are system, user and assistant") -}}}}
  {{%- endif -%}}
  {{%- if not answers and before not in ("system", "user") -%}}
    {{{{- {prompt_open} -}}}}
  {{%- endif -%}}
  {{%- if message.content is string -%}}
    {{{{- message.content -}}}}
  {{%- else -%}}
    {{%- for part in message.content -%}}
      {{%- if part.type == "text" -%}}{{{{- part.text -}}}}
      {{%- elif part.type == "image" and not answers -%}}{{{{- {picture} -}}}}
      {{%- else -%}}
        {{{{- raise_exception("a message holds text, and of the user also images") -}}}}
      {{%- endif -%}}
    {{%- endfor -%}}
  {{%- endif -%}}
  {{%- if message.role == "system" -%}}{{{{- "\\n" -}}}}{{%- endif -%}}
  {{%- if not answers and (after == "assistant" or (loop.last and add_generation_prompt)) -%}}
    {{{{- {prompt_close} -}}}}
  {{%- endif -%}}
  {{%- if answers and after != "assistant" -%}}{{{{- {response_close} -}}}}{{%- endif -%}}
{{%- endfor -%}}
"""
