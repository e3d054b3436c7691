"""One conversation, turn by turn: what has been read stays in the key-value cache.

A turn adds slots after those of the previous turn, so only the new ones are read. The content of
every slot of a cache is known (`Held`); a conversation that does not continue from it is read again
from the first slot that differs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.segments import DRAWN, Image, Segment, Text
from data_pipelines.sequences.document import MASK_FIELDS, Document
from data_pipelines.sequences.format import SequenceConfig
from data_pipelines.sequences.packing import PackingConfig, pack_rows
from data_pipelines.sequences.sequence import build_prefix
from unicom_jax.core.batch import MixedBatch, Role
from unicom_jax.inference import engine
from unicom_jax.inference.arrays import derived_seed
from unicom_jax.inference.canvas import canvas_of, drawn_grid
from unicom_jax.inference.conversations import Conversations, source_of
from unicom_jax.inference.drawing import Drawing
from unicom_jax.inference.guidance import CONDITIONAL
from unicom_jax.inference.prompt import bucket, power_of_two
from unicom_jax.inference.requests import Conversation, as_conversation
from unicom_jax.inference.text import Sampling, begin_writing
from unicom_jax.inference.words import Listener, OnText, stop_strings
from unicom_jax.models.transformer import KVCache

Slots = np.ndarray  # (L, facts) int64: all that decides a slot's keys and values, as numbers
SEES = MASK_FIELDS.index("context_stop") - len(MASK_FIELDS)  # the fact up to which slot it sees


@dataclasses.dataclass
class Held:
    """A cache of one row, and the slots that it holds; later slots are free."""

    cache: KVCache
    slots: Slots

    @property
    def room(self) -> int:
        return self.cache.k.shape[2]


class Session:
    """Continues one conversation; made by `Generator.session`.

    It accepts any conversation at any time; what that has in common with the previous one is not
    read again.
    """

    def __init__(self, model: Conversations) -> None:
        self.model = model
        self.held: dict[str, Held] = {}  # by guidance branch
        self.slots_read = 0  # slots computed for prefixes so far

    def respond(
        self,
        conversation: Conversation,
        *,
        max_images: int = 4,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop: str | Sequence[str] = (),
        on_text: OnText | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        **drawing: Any,
    ) -> list[Segment]:
        """Lets the model write words, and draw a picture whenever it opens one, until its turn
        ends.

        Args:
          conversation: all that was said so far; a string is a prompt.
          max_images: the turn ends after this many pictures.
          max_tokens, temperature, top_p, top_k, stop: as for `write`.
          on_text: called as on_text(part, piece) with each piece of text once it is written; part
            counts the texts of the response.
          size, drawing: as for `paint`.
          seed: determines all random choices.

        Raises:
          ValueError: as `write` and `paint`.
        """
        sampling = Sampling(temperature, top_p, top_k)
        settings, said = self.model.drawing(**drawing), as_conversation(conversation)
        response: list[Segment] = []
        for part in range(max_images):
            context, own = [*said, *response], derived_seed(seed, part)  # each with its own noise
            listening = on_text is not None or stop_strings(stop)
            listener = Listener(self.model.words, on_text, stop, [part]) if listening else None
            tokens = self._write(context, self.model.limit(max_tokens), sampling, own, listener)
            words = self.model.words.until_stop(self.model.words.text(tokens), stop)
            if words:
                response.append(Text(words, supervised=True))
            if not self.model.words.draws(tokens):
                break
            image = self._paint([*said, *response], size, settings, own)
            response.append(Image(image, DRAWN))
        return response

    def _write(
        self,
        context: Sequence[Segment],
        limit: int,
        sampling: Sampling,
        seed: int,
        listener: Listener | None,
    ) -> np.ndarray:
        """Token ids that follow `context`; the cache then holds them too."""
        model, free = self.model, bucket(limit)
        document = build_prefix(context, model.tokenizer, model.sequence)
        hidden = self._hold(CONDITIONAL, document, free)
        held, length = self.held.pop(CONDITIONAL), len(document)
        lengths, positions = np.array([length], np.int32), np.array([document.next_position])
        tail = model.tail(lengths, positions.astype(np.int32), length, seed, [0])
        writing = begin_writing(hidden, held.cache, free)
        writing, (tokens,) = model.finish_writing(writing, tail, limit, sampling, listener)
        written = _written(tokens, length, document.next_position)
        self.held[CONDITIONAL] = Held(writing.cache, np.concatenate([held.slots, written]))
        return tokens

    def _paint(
        self,
        context: Sequence[Segment],
        size: tuple[int, int] | None,
        settings: Drawing,
        seed: int,
    ) -> np.ndarray:
        """The picture that follows `context`."""
        model = self.model
        grid = drawn_grid(context, size, model.sequence, model.usual_side)
        settings = model.suited(settings, context, grid)
        canvas = canvas_of(grid, model.models.canvas, model.sequence)
        documents = model.branches(context, settings)
        for name, document in zip(settings.branches, documents, strict=True):
            self._hold(name, document, room=0)
        start = bucket(max(map(len, documents)))
        caches = tuple(self.held[name].cache for name in settings.branches)
        cache = _side_by_side(caches, start, model.slots_of(canvas))
        lengths = np.array([len(document) for document in documents], np.int32)
        positions = np.array([document.next_position for document in documents], np.int32)
        latents = model.latents(
            cache, (lengths, positions, start), [0], [grid], canvas, settings, seed,
            [source_of(context)],
        )  # fmt: skip
        (picture,) = model.codec.pixels(
            latents, [0], [grid], canvas, model.codec.steps(settings.codec_steps), seed
        )
        return picture

    def _hold(self, name: str, document: Document, room: int) -> jax.Array:
        """Reads what the branch's cache lacks of `document`; returns its last hidden state (1, W).

        Afterwards `room` slots after it are free.
        """
        model, wanted = self.model, _slots_of(document)
        held = self.held.pop(name, None)
        start = 0 if held is None else _shared(held.slots, wanted)
        row, patches = _part(document, start, bucket(len(document) - start), model.sequence)
        slots = row.tokens.shape[1]
        needed = start + max(slots, len(document) - start + room)
        if held is None or held.room < needed:
            if held is not None and start:  # a larger cache: everything is read again
                return self._hold(name, document, room)
            held = Held(model.models.new_cache(1, bucket(2 * needed)), wanted[:0])
        last = np.array([len(document) - 1 - start], np.int32)
        hidden, cache = engine.read(
            model.models, model.params, *model.models.place((row, patches, last)),
            held.cache, np.int32(start),
        )  # fmt: skip
        self.held[name] = Held(cache, wanted)
        self.slots_read += len(document) - start
        return hidden


def _slots_of(document: Document) -> Slots:
    """All that determines what each of a document's slots writes into a cache."""
    pictures = zip(document.patches, document.grids, strict=True)
    digests = [
        int.from_bytes(hashlib.blake2b(cut.tobytes() + repr(grid).encode(), digest_size=7).digest())
        for cut, grid in pictures
    ]
    pictured = document.roles > Role.TEXT
    shown = np.zeros(len(document), np.int64)
    shown[pictured] = np.array([0, *digests], np.int64)[document.image_index[pictured] + 1]
    columns = (
        document.tokens, document.roles, *document.positions.T, document.image_token, shown,
        *(getattr(document.mask, name) for name in MASK_FIELDS),
    )  # fmt: skip
    return np.stack(columns, axis=1).astype(np.int64)


def _written(tokens: np.ndarray, start: int, position: int) -> Slots:
    """The slots of text that the model wrote after the first `start` slots."""
    index = np.arange(len(tokens))
    columns = [tokens, np.full(len(tokens), Role.TEXT), position + index, position + index]
    columns += [0 * index, 0 * index, 0 * index, start + index + 1, 0 * index, 0 * index]
    return np.stack(columns, axis=1).astype(np.int64)


def _shared(held: Slots, wanted: Slots) -> int:
    """How many leading slots are the same, so that only the rest of `wanted` has to be read.

    At least the last one is read again, for its hidden state. A slot that sees later ones, as in a
    picture, is only kept together with these.
    """
    most = min(len(held), len(wanted) - 1)
    same = (held[:most] == wanted[:most]).all(axis=1)
    count = int(same.argmin()) if not same.all() else most
    while count and (beyond := wanted[:count, SEES] > count).any():
        count = int(beyond.argmax())
    return count


def _part(
    document: Document, start: int, slots: int, sequence: SequenceConfig
) -> tuple[MixedBatch, np.ndarray | None]:
    """The slots from `start` on as a row of `slots`, and the patches of the pictures in it."""
    images = power_of_two(max(1, len(document.grids)))
    packing = PackingConfig(slots=start + slots, images=images)
    batch = pack_rows([[document]], packing, sequence)
    shown = sorted(set(batch.image_index[0, start:][batch.roles[0, start:] > Role.TEXT].tolist()))
    kept = power_of_two(max(1, len(shown)))
    order = np.array([*shown, *[0] * (kept - len(shown))])
    renumbered = np.zeros(images, np.int32)
    renumbered[shown] = np.arange(len(shown))

    def cut(x: np.ndarray) -> np.ndarray:
        return x[:, start:]

    names = ("tokens", "positions", "roles", "image_token", "targets", "target_weights", "parts")
    grids = batch.grids[:, order] * (np.arange(kept) < len(shown))[:, None]
    row = batch.replace(
        **{name: cut(getattr(batch, name)) for name in names},
        mask=jax.tree.map(cut, batch.mask),
        image_index=renumbered[cut(batch.image_index)],
        grids=grids.astype(np.int32),
        patches=None,
    )
    return row, batch.patches[:, order] if shown else None


def _side_by_side(caches: tuple[KVCache, ...], start: int, room: int) -> KVCache:
    """One cache from caches of one row each: their first `start` slots, and `room` more."""

    def join(*parts: jax.Array) -> jax.Array:
        pads = [max(start - part.shape[2], 0) for part in parts]
        rows = [
            jnp.pad(part[:, :, :start], ((0, 0), (0, 0), (0, pad + room), (0, 0), (0, 0)))
            for part, pad in zip(parts, pads, strict=True)
        ]
        return jnp.concatenate(rows, axis=1)

    return jax.tree.map(join, *caches)
