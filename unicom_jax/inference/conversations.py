"""`Conversations`: what a model writes, paints or both behind segments of words and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32

from data_pipelines.build import sequence_config
from data_pipelines.sequences.sequence import VISION_START, Document, SequenceConfig, build_prefix
from data_pipelines.sequences.tasks import DRAWN, Image, Segment, Text, unconditional_segments
from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.core.module import Params
from unicom_jax.core.picture import Picture
from unicom_jax.families.build import (
    build_codec,
    build_encoder,
    build_space,
    build_unified,
    usual_shift,
)
from unicom_jax.inference import engine
from unicom_jax.inference.arrays import in_batches, noise_at, prepared, to_pictures
from unicom_jax.inference.drawing import Drawing
from unicom_jax.inference.prompt import collate, image_slots
from unicom_jax.inference.text import Sampling

PIXEL_SALT = 1_000_003  # added to the seed: a picture's pixels have noise of their own


class Conversations:
    """Continues conversations with one set of weights.

    Requests are run in batches of `batch_size`; short batches are filled up, so a few programs
    serve everything.

    Args:
      config: the configuration the weights were trained with.
      params: trees `vision`, `codec`, `unified`; for a codec over latents also `autoencoder`.
    """

    def __init__(
        self, config: Mapping[str, Any], tokenizer: Tokenizer, params: Mapping[str, Params]
    ) -> None:
        self.config, self.tokenizer, self.params = config, tokenizer, params
        self.models = engine.Models(
            build_encoder(config).vision,
            build_codec(config),
            build_unified(config),
            build_space(config),
        )
        self.sequence: SequenceConfig = sequence_config(config)
        self.batch_size: int = config["evaluation"]["batch_size"]
        self.codec_steps: int = config["codec"]["sample_steps"]

    def write(
        self,
        conversations: Sequence[Sequence[Segment]],
        *,
        opening: str = "",
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """The words that follow each conversation, up to the end of the turn or an image."""
        return [
            text
            for text, _ in self._write(
                conversations, opening, max_tokens, Sampling(temperature, top_p), seed
            )
        ]

    def paint(
        self,
        conversations: Sequence[Sequence[Segment]],
        *,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        sampler: str | None = None,
        seed: int = 0,
    ) -> list[Picture]:
        """The picture that follows each conversation."""
        defaults = self.config["sample"]
        interval = defaults["guidance_interval"] if guidance_interval is None else guidance_interval
        settings = Drawing(
            steps=defaults["steps"] if steps is None else steps,
            guidance=float(defaults["guidance"] if guidance is None else guidance),
            sampler=defaults["sampler"] if sampler is None else sampler,
            interval=tuple(interval),  # JSON knows lists only; a static argument has to be hashable
            shift=usual_shift(self.config, self.models.unified.images),
        )
        sizes = [self._drawn_grid(segments, size) for segments in conversations]
        results: list[Picture | None] = [None] * len(conversations)
        for grid in sorted(set(sizes)):  # one program a grid
            chosen = [i for i, other in enumerate(sizes) if other == grid]

            def run(batch: list[int], first: int, grid=grid) -> list[Picture]:
                del first
                segments = [conversations[i] for i in batch]
                return self._paint(segments, batch, grid, settings, seed)

            for i, picture in zip(chosen, in_batches(run, chosen, self.batch_size), strict=True):
                results[i] = picture
        return results

    def respond(
        self,
        conversation: Sequence[Segment],
        *,
        max_images: int = 4,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        **drawing: Any,
    ) -> list[Segment]:
        """Lets the model decide: words, and pictures where it opens one, until its turn ends."""
        sampling = Sampling(temperature, top_p)
        response: list[Segment] = []
        for turn in range(max_images):  # each with noise of its own
            context = [*conversation, *response]
            ((words, draws),) = self._write([context], "", max_tokens, sampling, seed + turn)
            if words:
                response.append(Text(words, supervised=True))
            if not draws:
                break
            (image,) = self.paint([[*conversation, *response]], seed=seed + turn, **drawing)
            response.append(Image(image, DRAWN))
        return response

    # ---- words ----------------------------------------------------------------------------

    def _write(
        self,
        conversations: Sequence[Sequence[Segment]],
        opening: str,
        max_tokens: int | None,
        sampling: Sampling,
        seed: int,
    ) -> list[tuple[str, bool]]:
        """(words, whether an image opens behind them) for each conversation."""
        tokens = self.tokens(conversations, opening, max_tokens, sampling, seed)
        return [self._words(row) for row in tokens]

    def tokens(
        self,
        conversations: Sequence[Sequence[Segment]],
        opening: str = "",
        max_tokens: int | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 - a tuple of constants
        seed: int = 0,
    ) -> list[Int32[np.ndarray, " tokens"]]:
        """Token ids that follow each conversation, the one that ended them included."""
        limit = max_tokens or self.config["sample"]["max_tokens"]
        stop = np.array(
            [
                self.tokenizer.end_of_document,
                self.tokenizer.turn_end,
                self.tokenizer.vision_start,
            ],
            np.int32,
        )

        def run(batch: list[Document], first: int) -> list[np.ndarray]:
            prefixes = collate(batch, self.sequence)
            places = np.arange(first, first + len(batch))
            keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(places)
            tokens, counts = engine.write(
                self.models, self.params, prefixes.batch, prefixes.lengths,
                prefixes.next_positions, stop, keys, max_tokens=limit, sampling=sampling,
            )  # fmt: skip
            return [
                row[:count]
                for row, count in zip(np.asarray(tokens), np.asarray(counts), strict=True)
            ]

        documents = [
            build_prefix(segments, self.tokenizer, self.sequence, opening)
            for segments in conversations
        ]
        return in_batches(run, documents, self.batch_size)

    def _words(self, tokens: Int32[np.ndarray, " tokens"]) -> tuple[str, bool]:
        draws = len(tokens) > 0 and int(tokens[-1]) == self.tokenizer.vision_start
        think = (self.tokenizer.think_start, self.tokenizer.think_end)
        spelt = dict(zip(think, ("<think>", "</think>"), strict=True))
        pieces: list[str] = []
        run: list[int] = []
        for token in map(int, tokens):
            if token in spelt:
                pieces += [self.tokenizer.decode(run), spelt[token]]
                run = []
            else:
                run.append(token)
        return "".join([*pieces, self.tokenizer.decode(run)]).strip(), draws

    # ---- pictures -------------------------------------------------------------------------

    def _drawn_grid(
        self, segments: Sequence[Segment], size: tuple[int, int] | None
    ) -> tuple[int, int]:
        """Patch rows and columns of the picture to draw: asked for, the source's, or the usual."""
        config = self.sequence
        unit = config.patch * config.pool
        if size is None:
            sources = [s.pixels for s in segments if isinstance(s, Image)]
            side = self.config["data"]["image_size"]
            shape = prepared(sources[-1], config).shape[:2] if sources else (side, side)
        else:
            shape = size
            usual = (self.config["data"]["image_size"],) * 2
            if config.images.kind == "fixed" and tuple(size) != usual:
                raise ValueError(
                    f"size {size}: this model was trained at {usual} only; leave the size out, or "
                    "train with --config.data.policy=bucket or naflex"
                )
        rows, cols = shape[0] // config.patch, shape[1] // config.patch
        if shape[0] % unit or shape[1] % unit or rows * cols > config.max_patches:
            raise ValueError(
                f"size {tuple(shape)}: sides must be multiples of {unit} and give at most "
                f"{config.max_patches} patches of {config.patch} pixels"
            )
        return rows, cols

    def _paint(
        self,
        conversations: list[Sequence[Segment]],
        places: list[int],
        grid: tuple[int, int],
        settings: Drawing,
        seed: int,
    ) -> list[Picture]:
        branches = [conversations]
        if settings.branches == 2:
            branches.append([unconditional_segments(one) for one in conversations])
        prefixes = collate(
            [
                build_prefix(segments, self.tokenizer, self.sequence, VISION_START)
                for branch in branches
                for segments in branch
            ],
            self.sequence,
        )
        pool = self.sequence.pool
        tokens = (grid[0] // pool) * (grid[1] // pool)
        latent_noise, pixel_noise = (
            noise_at(seed + salt, places, shape)
            for salt, shape in (
                (0, (tokens, self.models.codec.latent_dim)),
                (PIXEL_SALT, (grid[0] * grid[1], self.models.codec.pixel_decoder.channels)),
            )
        )
        grids = np.full((len(conversations), 2), grid, np.int32)
        slots = image_slots(prefixes, grid[0] // pool, grid[1] // pool)
        models = dataclasses.replace(self.models, space=self.models.space.of_grid(*grid))
        painted = engine.paint(
            models, self.params, prefixes.batch, slots.positions, slots.mask,
            grids, latent_noise, pixel_noise,
            pool=pool, settings=settings, codec_steps=self.codec_steps,
        )  # fmt: skip
        return to_pictures(painted, grids, self.sequence.patch)
