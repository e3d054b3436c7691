"""From segments to slots: the sequence format, as one `Document` of NumPy arrays.

One turn is `<|im_start|>` prompt `<|im_end|>` response `<|endoftext|>`; an image is enclosed by
`<|vision_start|>` and `<|vision_end|>`. Words without a prompt are a plain document. Loss is on the
response: from the `<|im_end|>`, which predicts its first token, to the closing `<|endoftext|>`.
`<|vision_end|>` is never predicted: how many tokens an image has is known before it is drawn.

A drawn image that ends its document is written only as NOISY slots. One that is followed by others
is written twice: CLEAN in its place, and NOISY at the end of the document with the positions of its
place, so that nothing sees it (`MaskIntervals` defines the mask). Either may have several NOISY
copies, each with its own noise and time, which then share one reading of the prompt.
Likewise one picture serves several separate questions (`Text.apart`): each continues from it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from data_pipelines import images
from data_pipelines.marks import ON_DEMAND
from data_pipelines.segments import DRAWN, SOURCE, Image, Segment, Text, is_response
from data_pipelines.sequences.document import MASK_FIELDS, Document, Slots, drawing_slots
from data_pipelines.sequences.format import EDIT_SOURCE, UNDERSTANDING, SequenceConfig
from data_pipelines.sequences.tasks import BrokenExample
from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.core.batch import MaskIntervals, Role
from unicom_jax.core.positions import image_positions, position_count

VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
STRUCTURE = ("end_of_document", "turn_start", "turn_end", "vision_start", "vision_end", "image_pad")


def build_document(
    segments: Sequence[Segment], tokenizer: Tokenizer, config: SequenceConfig, key: str = "document"
) -> Document:
    """The training document of a list of segments. The loss is on what `segments.is_response` says.

    Raises:
      ValueError: no response.
      BrokenExample: no picture, or a text that contains structural tokens; it names `key`.
    """
    if not segments or not is_response(segments[-1]):
        raise ValueError(
            f"example {key!r}: its segments end without a response; end a task with one"
        )
    writer = _Writer(tokenizer, config, key, training=True)
    if config.dummies and not any(isinstance(segment, Image) for segment in segments):
        writer.dummy()
    writer.write(segments)
    if isinstance(segments[-1], Text):
        writer.markup(config.response_close, supervised=True)
    writer.write_noisy_copies()
    return writer.finish()


def build_prefix(
    segments: Sequence[Segment],
    tokenizer: Tokenizer,
    config: SequenceConfig,
    opening: str = "",
    key: str = "prompt",
) -> Document:
    """All that precedes an answer: prompts and earlier turns, without targets or noisy copies.

    Args:
      segments: the conversation so far. Drawn images in it are written CLEAN. When it ends with a
        prompt, the turn is closed and the response starts after the prefix; when it ends with a
        response, that response is continued.
      opening: what the response is forced to start with: `VISION_START` to draw at once, "<think>"
        to think first.
    """
    writer = _Writer(tokenizer, config, key, training=False)
    writer.write(segments)
    if segments and not is_response(segments[-1]):
        writer.markup(config.prompt_close)
    writer.markup(opening)
    return writer.finish()


def words_before_sources(segments: Sequence[Segment]) -> list[Segment]:
    """The segments with the words of each prompt that has a picture to edit before its pictures."""
    ordered: list[Segment] = []
    for _, group in itertools.groupby(segments, is_response):
        turn = list(group)
        if any(isinstance(segment, Image) and segment.role == SOURCE for segment in turn):
            turn.sort(key=lambda segment: isinstance(segment, Image))
        ordered += turn
    return ordered


@dataclasses.dataclass
class _Piece:
    """A run of slots with one role and one image, or one draw if they are NOISY.

    `supervised` marks the tokens to be predicted. It, positions and mask intervals are one value
    for all slots, or one for each.
    """

    tokens: Sequence[int]
    role: Role
    slots: Slots
    image: int = 0
    supervised: bool | np.ndarray = False


class _Writer:
    """Appends pieces and tracks the slot and the rotary position at which the next one starts."""

    def __init__(
        self, tokenizer: Tokenizer, config: SequenceConfig, key: str, training: bool
    ) -> None:
        self.tokenizer, self.config, self.key = tokenizer, config, key
        self.training = training
        self.pieces: list[_Piece] = []
        self.patches: list[np.ndarray] = []
        self.grids: list[tuple[int, int]] = []
        # The image of each array, and the array, so that no later one gets its identity.
        self.kept: dict[tuple[int, images.ImagePolicy], tuple[int, np.ndarray]] = {}
        self.draws: list[int] = []  # the image of each
        self.noisy: list[tuple[int, int, int]] = []  # image, slot and position of its place
        self.slot = self.position = 0
        self.stem: tuple[int, int] | None = None  # slot and position before separate turns
        self.turn = 0  # first slot of the turn that is being written

    def write(self, segments: Sequence[Segment]) -> None:
        config, previous = self.config, None
        if config.edit_words == "before":
            segments = words_before_sources(segments)
        for index, segment in enumerate(segments):
            response = is_response(segment)
            if isinstance(segment, Text) and segment.apart:
                if previous:
                    self.markup(config.response_close, supervised=True)
                self.stem = self.stem or (self.slot, self.position)
                self.turn, self.position = self.slot, self.stem[1]
            elif not response and previous is not False:  # it opens a turn, and ends the one before
                if previous:
                    self.markup(config.response_close, supervised=True)
                self.markup(config.prompt_open)
            if response and previous is False:
                self.markup(config.prompt_close, supervised=config.template_labels)
            if isinstance(segment, Text):
                self.text(segment)
            else:
                self.image(segment, last=self.training and index == len(segments) - 1)
            previous = response

    def markup(self, template: str, supervised: bool = False) -> None:
        self._tokens(encode_words(self.tokenizer, template), supervised)

    def text(self, segment: Text) -> None:
        ids = encode_words(self.tokenizer, segment.text)
        if not _structure(self.tokenizer).isdisjoint(ids):
            raise BrokenExample(
                f"example {self.key!r}: the text {segment.text[:60]!r} contains tokens that mark "
                "turns or images; remove their spellings from it"
            )
        self._tokens(ids, segment.supervised)

    def image(self, segment: Image, last: bool) -> None:
        """Writes one image between its marks. A drawn image gets its noisy copies later; the last
        one consists of these alone.
        """
        self.markup(VISION_START, supervised=segment.role == DRAWN)
        image = self._keep(segment)
        if segment.role == DRAWN:
            self.noisy.append((image, self.slot, self.position))
            if last:
                return
            self._block(image, (Role.CLEAN,))
        elif segment.role == SOURCE:
            self._block(image, EDIT_SOURCE[self.config.edit_source])
        else:
            self._block(image, UNDERSTANDING[self.config.understanding])
        self.markup(VISION_END)

    def dummy(self) -> None:
        """Writes a black drawn picture before any word, in its place and seen by all that follows.

        A model recognises its slots by their empty spans (`families.slots.dummy_draws`).
        """
        side = self.config.images.size
        image = self._keep(Image(np.zeros((side, side, 3), np.uint8), DRAWN))
        rows, cols = self.config.token_grid(*self.grids[image], Role.NOISY)
        count = rows * cols
        positions = _positions(rows, cols, self.config.image_positions) + self.position
        slots = Slots(positions, self._causal(count))
        self._append(_Piece([0] * count, Role.NOISY, slots, len(self.draws)))
        self.draws.append(image)
        self.position += position_count(rows, cols, self.config.image_positions)

    def write_noisy_copies(self) -> None:
        for image, place, position in self.noisy:
            rows, cols = self.config.token_grid(*self.grids[image], Role.NOISY)
            kind = self.config.image_positions
            for _ in range(self.config.noisy_copies):
                slots = drawing_slots(place, position, rows, cols, self.slot, kind)
                self._append(_Piece([0] * (rows * cols), Role.NOISY, slots, len(self.draws)))
                self.draws.append(image)

    def finish(self) -> Document:
        names = ("tokens", "roles", "image_index", "image_token", "targets")
        rows = {name: np.zeros(self.slot, np.int32) for name in names}
        mask = MaskIntervals(*(np.zeros(self.slot, np.int32) for _ in MASK_FIELDS))
        positions = np.zeros((self.slot, 2), np.int32)
        supervised = np.zeros(self.slot, bool)
        start = 0
        for piece in self.pieces:
            here = slice(start, start + len(piece.tokens))
            rows["roles"][here], rows["image_index"][here] = piece.role, piece.image
            if piece.role == Role.TEXT:
                rows["tokens"][here] = piece.tokens
                supervised[here] = piece.supervised
            else:
                rows["image_token"][here] = np.arange(len(piece.tokens))
            positions[here] = piece.slots.positions
            for name in MASK_FIELDS:
                getattr(mask, name)[here] = getattr(piece.slots.mask, name)
            start = here.stop
        # A slot predicts the token that follows it.
        rows["targets"][:-1] = np.where(supervised[1:], rows["tokens"][1:], 0)
        weights = np.zeros(self.slot, np.float32)
        weights[:-1] = supervised[1:]
        return Document(
            key=self.key,
            **rows,
            positions=positions,
            target_weights=weights,
            mask=mask,
            patches=tuple(self.patches),
            grids=tuple(self.grids),
            draws=tuple(self.draws),
            next_position=self.position,
        )

    def _keep(self, segment: Image) -> int:
        """Stores a picture's patches and returns its index; an array that is both read and drawn is
        stored once, unless its purposes differ in how it is resized."""
        patch, policy = self.config.patch, self.config.policy_of(segment.role)
        found = id(segment.pixels), policy
        if found in self.kept:
            return self.kept[found][0]
        try:
            picture = images.prepare(segment.pixels, policy, patch, self.config.unit)
        except ValueError as error:
            raise BrokenExample(f"example {self.key!r}: {error}") from error
        self.patches.append(images.patchify(picture, patch))
        self.grids.append((picture.shape[0] // patch, picture.shape[1] // patch))
        self.kept[found] = len(self.grids) - 1, segment.pixels
        return self.kept[found][0]

    def _block(self, image: int, roles: tuple[Role, ...]) -> None:
        """Writes the tokens of one image in its place, once for each role: one bidirectional block
        with the same positions for every role. Qwen2.5-VL ("mrope") reads them like words.
        """
        kind = self.config.image_positions
        grids = [self.config.token_grid(*self.grids[image], role) for role in roles]
        stop = self.slot + sum(rows * cols for rows, cols in grids)
        for role, (rows, cols) in zip(roles, grids, strict=True):
            count = rows * cols
            positions = _positions(rows, cols, kind) + self.position
            mask = self._causal(count) if kind == "mrope" else MaskIntervals(0, stop, 0, 0)
            self._append(_Piece([0] * count, role, Slots(positions, mask), image))
        self.position += max(position_count(rows, cols, kind) for rows, cols in grids)

    def _tokens(self, ids: Sequence[int], supervised: bool) -> None:
        count = len(ids)
        slots = Slots(self.position + np.arange(count)[:, None], self._causal(count))
        labels = self.training and (supervised or self._template_labels(ids))
        self._append(_Piece(ids, Role.TEXT, slots, supervised=labels))
        self.position += count

    def _causal(self, count: int) -> MaskIntervals:
        """Intervals of the next `count` slots: causal, but without other separate turns."""
        seen = self.slot + np.arange(1, count + 1)
        if self.stem is None:
            return MaskIntervals(0, seen, 0, 0)
        return MaskIntervals(0, self.stem[0], self.turn, seen)

    def _template_labels(self, ids: Sequence[int]) -> bool | np.ndarray:
        """Which tokens of a prompt have a loss."""
        if not self.config.template_labels:
            return False
        labels = np.isin(ids, [*_template(self.tokenizer)])
        if self.stem is not None and self.slot == self.turn:
            labels[:1] = False  # the slot before it ends another turn
        return labels

    def _append(self, piece: _Piece) -> None:
        self.pieces.append(piece)
        self.slot += len(piece.tokens)


@functools.lru_cache(maxsize=4096)
def encode_words(tokenizer: Tokenizer, words: str) -> tuple[int, ...]:
    """The tokens of a text, cached for the most recent texts."""
    return tuple(tokenizer.encode(words)) if words else ()


@functools.lru_cache(maxsize=16)
def _structure(tokenizer: Tokenizer) -> frozenset[int]:
    on_demand = ON_DEMAND.keys() & tokenizer.special_ids.keys()
    return frozenset(tokenizer.require(name) for name in (*STRUCTURE, *on_demand))


@functools.lru_cache(maxsize=16)
def _template(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens of a prompt on which `template_labels` puts a loss."""
    marks = tokenizer.turn_start, tokenizer.turn_end, tokenizer.vision_start
    return frozenset((*marks, *tokenizer.encode("\n")))


@functools.lru_cache(maxsize=256)
def _positions(rows: int, cols: int, kind: str) -> np.ndarray:
    return image_positions(0, rows, cols, kind)
