"""`Conversations`: what a model writes or paints after segments of words and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32

from data_pipelines.build import sequence_config
from data_pipelines.segments import SOURCE, Image, Segment
from data_pipelines.sequences.document import Document
from data_pipelines.sequences.dropout import build_unconditional
from data_pipelines.sequences.format import SequenceConfig
from data_pipelines.sequences.sequence import VISION_START, build_prefix
from data_pipelines.sequences.tasks import without_pictures
from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.core.module import Params
from unicom_jax.core.picture import Picture
from unicom_jax.inference import engine
from unicom_jax.inference.arrays import LATENTS, in_batches, noise_at, padded_rows
from unicom_jax.inference.canvas import Canvas, canvas_of, drawn_grid
from unicom_jax.inference.drawing import Drawing
from unicom_jax.inference.guidance import CONDITIONAL, PICTURELESS, WORDLESS
from unicom_jax.inference.prompt import Prefixes, bucket, collate, image_slots
from unicom_jax.inference.reconstructor import Reconstructor
from unicom_jax.inference.requests import Conversation, as_conversations
from unicom_jax.inference.text import Sampling, Tail, Writing, begin_writing
from unicom_jax.inference.words import Listener, OnText, Words, stop_strings
from unicom_jax.models.transformer import KVCache


def _pictureless(segments: Sequence[Segment], *how: Any) -> Document:
    return build_prefix(without_pictures(segments), *how)


def source_of(segments: Sequence[Segment]) -> Picture | None:
    """The picture that the next one is to change: the last one, if it was given to be edited."""
    pictures = [segment for segment in segments if isinstance(segment, Image)]
    return pictures[-1].pixels if pictures and pictures[-1].role == SOURCE else None


# The function that builds the prefix of each guidance branch, with `build_prefix`'s arguments.
PREFIXES: dict[str, Callable[..., Document]] = {
    CONDITIONAL: build_prefix,
    WORDLESS: build_unconditional,
    PICTURELESS: _pictureless,
}


class Conversations:
    """Continues conversations with one set of weights.

    Requests run in batches of `batch_size`; short batches are padded, so a few programs serve
    everything. The result of a request depends on the seed and its place, never on the batch.

    Args:
      config: the configuration the weights were trained with.
      params: the trees of `runs.weights.restore`.
      mesh: the devices over which the weights are sharded; None: a single device.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tokenizer: Tokenizer,
        params: Mapping[str, Params],
        mesh: Mesh | None = None,
    ) -> None:
        self.config, self.tokenizer, self.params = config, tokenizer, params
        self.models = engine.Models.of(config, mesh)
        self.codec = Reconstructor(config, params, self.models)
        self.sequence: SequenceConfig = sequence_config(config)
        self.words = Words(tokenizer)
        self.usual_side: int = config["data"]["image_size"]

    @property
    def batch_size(self) -> int:
        """Requests computed at once."""
        return self.codec.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self.codec.batch_size = size

    def write(
        self,
        conversations: Conversation | Sequence[Conversation],
        *,
        opening: str = "",
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop: str | Sequence[str] = (),
        on_text: OnText | None = None,
        seed: int = 0,
        first: int = 0,
    ) -> list[str]:
        """The words that follow each conversation, up to the end of the turn or an image.

        Args:
          conversations: a list; a string or a list of segments is a single one.
          opening: what the answer is forced to start with, such as "<think>".
          max_tokens: the longest answer; None takes the configuration's.
          temperature, top_p, top_k: as in `Sampling`.
          stop: strings that end an answer. Neither they nor what follows is part of it.
          on_text: called as on_text(place, piece) with each piece of text once it is written.
          seed, first: a row's random choices follow from the seed and its place in the request,
            counted from `first`; set it to split a request without changing its answers.

        Raises:
          ValueError: something is not a conversation, or a number is out of its range.
        """
        sampling = Sampling(temperature, top_p, top_k)
        rows = self.tokens(
            conversations, opening, max_tokens, sampling, stop, on_text, seed=seed, first=first
        )
        return [self.words.until_stop(self.words.text(row), stop) for row in rows]

    def paint(
        self,
        conversations: Conversation | Sequence[Conversation],
        *,
        size: tuple[int, int] | None = None,
        count: int = 1,
        seed: int = 0,
        first: int = 0,
        **drawing: Any,
    ) -> list[Picture]:
        """The pictures that follow each conversation.

        Args:
          conversations: as for `write`.
          size: (height, width) in pixels, multiples of the patch; None: that of the conversation's
            last picture, or the training size.
          count: pictures for each conversation, which are consecutive in the result.
          seed, first: a picture's noise follows from the seed and its place in the result, counted
            from `first`.
          drawing: fields of `Drawing`; None takes the configuration's.

        Raises:
          ValueError: something is not a conversation, the model does not draw the size, or an
            option is unknown or out of its range.
        """
        if count < 1:
            raise ValueError(f"count is {count}; give at least 1 picture per prompt")
        settings = self.drawing(**drawing)
        said = [one for one in as_conversations(conversations) for _ in range(count)]
        grids = [drawn_grid(segments, size, self.sequence, self.usual_side) for segments in said]
        groups: dict[tuple[Canvas, Drawing], list[int]] = {}
        for place, segments in enumerate(said):
            canvas = canvas_of(grids[place], self.models.canvas, self.sequence)
            own = self.suited(settings, segments, grids[place])
            groups.setdefault((canvas, own), []).append(place)

        results: dict[int, Picture] = {}
        for (canvas, own), places in groups.items():

            def run(batch: list[int], canvas=canvas, own=own) -> list[Picture]:
                chosen = [said[place] for place in batch]
                latents = self._draw(
                    chosen, [first + p for p in batch], [grids[p] for p in batch], canvas, own, seed
                )
                return self.codec.pixels(
                    latents, [first + p for p in batch], [grids[p] for p in batch], canvas,
                    self.codec.steps(own.codec_steps), seed,
                )  # fmt: skip

            drawn = in_batches(run, places, self.batch_size, self.models.row_devices)
            results |= zip(places, drawn, strict=True)
        return [results[place] for place in range(len(said))]

    def drawing(self, **options: Any) -> Drawing:
        """The configuration's `Drawing` with those `options` that are not None; raises ValueError
        if one is unknown, out of its range, or not supported by this model."""
        known = {field.name for field in dataclasses.fields(Drawing)}
        if unknown := sorted(options.keys() - known):
            raise ValueError(
                f"{unknown[0]} is not a drawing option; choose from {', '.join(sorted(known))}"
            )
        defaults = {name: value for name, value in self.config["sample"].items() if name in known}
        given = {name: value for name, value in options.items() if value is not None}
        settings = Drawing(**(defaults | given))
        if settings.codec_steps is not None and not self.models.codec.noise_channels:
            raise ValueError(
                f"codec_steps is {settings.codec_steps}, but this model's codec decodes pictures "
                "at once; leave it out"
            )
        if settings.grid not in self.models.unified.images.time_grids:
            raise ValueError(
                f"grid {settings.grid!r} needs the velocity at t = 1, which this model does not "
                "compute; leave it out"
            )
        # JSON has only lists; a static argument has to be hashable.
        return dataclasses.replace(settings, guidance_interval=tuple(settings.guidance_interval))

    def suited(
        self, settings: Drawing, segments: Sequence[Segment], grid: tuple[int, int]
    ) -> Drawing:
        """`settings` for one picture: with the shift for its size, without guidance by pictures if
        its prompt has none, and with `edit_start` 0 if it edits none.

        Raises:
          ValueError: the picture is to begin with a source of another size.
        """
        if not any(isinstance(segment, Image) for segment in segments):
            settings = dataclasses.replace(settings, image_guidance=1.0)
        source = source_of(segments)
        if settings.edit_start and source is None:
            settings = dataclasses.replace(settings, edit_start=0.0)
        elif settings.edit_start and grid != (own := self.codec.grid(source)):
            size, wanted = (
                (r * self.sequence.patch, c * self.sequence.patch) for r, c in (own, grid)
            )
            raise ValueError(
                f"edit_start={settings.edit_start:g} begins with the picture to edit, of {size} "
                f"pixels, but a picture of {wanted} is to be drawn; leave the size out, or set "
                "edit_start=0"
            )
        if settings.shift is None:
            images, slots = self.models.unified.images, grid[0] * grid[1] // self.sequence.unit**2
            shift = images.flow_time.shift_of(*images.shape_of(slots))
            settings = dataclasses.replace(settings, shift=float(shift))
        return settings

    # ---- words ----------------------------------------------------------------------------

    def tokens(
        self,
        conversations: Conversation | Sequence[Conversation],
        opening: str = "",
        max_tokens: int | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        stop: str | Sequence[str] = (),
        on_text: OnText | None = None,
        *,
        seed: int = 0,
        first: int = 0,
    ) -> list[Int32[np.ndarray, " tokens"]]:
        """Token ids that follow each conversation, including the one that ended them."""
        documents = [
            build_prefix(segments, self.tokenizer, self.sequence, opening)
            for segments in as_conversations(conversations)
        ]
        limit = self.limit(max_tokens)

        def run(batch: list[int]) -> list[np.ndarray]:
            prefixes = collate([documents[place] for place in batch], self.sequence)
            writing, tail = self._begin(prefixes, limit, seed, [first + place for place in batch])
            listening = on_text is not None or stop_strings(stop)
            listener = Listener(self.words, on_text, stop, batch) if listening else None
            return self.finish_writing(writing, tail, limit, sampling, listener)[1]

        return in_batches(run, range(len(documents)), self.batch_size, self.models.row_devices)

    def limit(self, max_tokens: int | None) -> int:
        """The longest answer in tokens: `max_tokens`, or the configuration's if it is None."""
        limit = self.config["sample"]["max_tokens"] if max_tokens is None else max_tokens
        if limit < 1:
            raise ValueError(f"max_tokens is {limit}; give at least 1")
        return limit

    def _begin(
        self, prefixes: Prefixes, limit: int, seed: int, places: Sequence[int]
    ) -> tuple[Writing, Tail]:
        """Reads prefixes and reserves slots for an answer after each."""
        room = bucket(prefixes.slots + limit) - prefixes.slots
        hidden, cache = self._read(prefixes, room)
        tail = self.tail(prefixes.lengths, prefixes.next_positions, prefixes.slots, seed, places)
        return begin_writing(hidden, cache, room), tail

    def tail(
        self,
        lengths: Int32[np.ndarray, " B"],
        next_positions: Int32[np.ndarray, " B"],
        start: int,
        seed: int,
        places: Sequence[int],
    ) -> Tail:
        """Where text starts after prefixes; see `Tail`."""
        return Tail(
            *self.models.place((lengths, next_positions)),
            np.int32(start),
            self.models.place(np.asarray(places, np.int32)),
            np.uint32(seed & 0xFFFFFFFF),
            np.array(self.words.stops, np.int32),
        )

    def finish_writing(
        self,
        writing: Writing,
        tail: Tail,
        limit: int,
        sampling: Sampling,
        listener: Listener | None = None,
    ) -> tuple[Writing, list[Int32[np.ndarray, " tokens"]]]:
        """Writes to the end; returns the last state and each row's tokens.

        Without a listener one call of the compiled loop writes all; with one, a call per token.
        """
        for until in range(1, limit + 1) if listener else (limit,):
            writing = engine.write(
                self.models, self.params, writing, tail, np.int32(until), sampling.numbers,
                mode=sampling.mode,
            )  # fmt: skip
            if listener:
                done = np.asarray(writing.done) | listener.update(np.asarray(writing.tokens))
                writing = writing._replace(done=self.models.place(done))
                if done.all():
                    break
        tokens = np.asarray(writing.tokens)
        if listener:
            listener.close(tokens)
        return writing, [row[row >= 0] for row in tokens]

    # ---- pictures -------------------------------------------------------------------------

    def branches(
        self, segments: Sequence[Segment], settings: Drawing, opening: str = VISION_START
    ) -> list[Document]:
        """The prefixes of one picture, one for each guidance branch."""
        return [
            PREFIXES[name](segments, self.tokenizer, self.sequence, opening)
            for name in settings.branches
        ]

    def _draw(
        self,
        conversations: Sequence[Sequence[Segment]],
        places: Sequence[int],
        grids: Sequence[tuple[int, int]],
        canvas: Canvas,
        settings: Drawing,
        seed: int,
    ) -> Any:
        """Latents of one picture after each conversation."""
        documents = [one for said in conversations for one in self.branches(said, settings)]
        prefixes = collate(documents, self.sequence, len(settings.branches))
        _, cache = self._read(prefixes, self.slots_of(canvas))
        behind = prefixes.lengths, prefixes.next_positions, prefixes.slots
        sources = [source_of(said) for said in conversations]
        return self.latents(cache, behind, places, grids, canvas, settings, seed, sources)

    def slots_of(self, canvas: Canvas) -> int:
        """Slots that a drawn picture takes."""
        return canvas.patches // self.sequence.unit**2

    def latents(
        self,
        cache: KVCache,
        behind: tuple[np.ndarray, np.ndarray, int],
        places: Sequence[int],
        grids: Sequence[tuple[int, int]],
        canvas: Canvas,
        settings: Drawing,
        seed: int,
        sources: Sequence[Picture | None] = (),
    ) -> Any:
        """Latents of a picture after each request whose prefixes the cache holds.

        Args:
          sources: the picture that each changes, if `settings.edit_start` is later than 0.
          behind: lengths and next positions of the prefixes, and the slot in which the picture
            starts.
          places: the pictures' places in the request, which determine their noise.
          grids: patch rows and columns of each.
          canvas: that of all pictures; from that slot on, the cache has `slots_of(canvas)` free.
        """
        images, slots = self.models.unified.images, self.slots_of(canvas)
        latent_grids = self.models.codec.grid(np.asarray(grids, np.int32))
        slot_grids = np.asarray(grids, np.int32) // self.sequence.unit
        noise = [
            noise_at(seed, [place], LATENTS, images.shape_of(int(rows * cols)))[0]
            for place, (rows, cols) in zip(places, slot_grids, strict=True)
        ]
        lengths, next_positions, start = behind
        kind = self.sequence.image_positions
        where = image_slots(lengths, next_positions, slot_grids, slots, start, kind)
        filled = padded_rows(noise, images.shape_of(slots)[0])
        begun = self.codec.encoded(sources, canvas) if settings.edit_start else None
        return engine.draw(
            self.models, self.params, cache,
            *self.models.place((where.positions, where.mask, latent_grids, filled)),
            np.int32(start), settings.numbers, begun, plan=settings.plan,
        )  # fmt: skip

    def _read(self, prefixes: Prefixes, room: int) -> tuple[Any, KVCache]:
        """Last hidden states, and a cache with `room` free slots after the prefixes."""
        rows, slots = prefixes.batch.tokens.shape
        cache = self.models.new_cache(rows, slots + room)
        return engine.read(
            self.models, self.params,
            *self.models.place((prefixes.batch, prefixes.patches, prefixes.lengths - 1)),
            cache, np.int32(0),
        )  # fmt: skip
