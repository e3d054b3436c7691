"""`Generator`: a trained model as functions of pictures and words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from data_pipelines import images as pictures
from data_pipelines.build import sequence_config
from data_pipelines.sequence import VISION_START, Document, SequenceConfig, build_prefix
from data_pipelines.tasks import (
    BRIEFLY,
    DRAWN,
    SOURCE,
    UNDERSTOOD,
    Image,
    Segment,
    Text,
    unconditional_segments,
)
from data_pipelines.tokenizer import Tokenizer, check_tokenizer, load_tokenizer
from unicom_jax.core.module import Params
from unicom_jax.core.pixels import to_bytes
from unicom_jax.inference import engine
from unicom_jax.inference.drawing import Drawing
from unicom_jax.inference.prompt import collate, image_slots
from unicom_jax.inference.text import Sampling
from unicom_jax.interop.checkpoint import (
    CheckpointError,
    read_config,
    restore_params,
    stage_steps,
)
from unicom_jax.models.build import build_codec, build_encoder, build_unified

UNIFIED_STAGES = ("sft", "continue", "pretrain", "align")  # the furthest one is used
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A picture (H, W, 3) uint8 and the plan in words that preceded it ("" without one)."""

    image: np.ndarray
    thought: str = ""


class Generator:
    """Captions, answers, pictures and edits from one set of weights.

    Requests are run in batches of `batch_size`; short batches are filled up, so a few programs
    serve everything.

    Args:
      config: the configuration the weights were trained with.
      params: trees `vision`, `codec`, `unified`.
    """

    def __init__(
        self, config: Mapping[str, Any], tokenizer: Tokenizer, params: Mapping[str, Params]
    ) -> None:
        self.config, self.tokenizer, self.params = config, tokenizer, params
        self.models = engine.Models(
            build_encoder(config).vision, build_codec(config), build_unified(config)
        )
        self.sequence: SequenceConfig = sequence_config(config)
        self.batch_size: int = config["evaluation"]["batch_size"]
        self.codec_steps: int = config["codec"]["sample_steps"]

    @classmethod
    def load(cls, workdir: str | Path) -> Generator:
        """The newest weights of a training directory.

        Raises:
          CheckpointError: no checkpoint there, a damaged one, or one of another version.
          TokenizerError: its tokenizer is missing, damaged or not the one it was trained with.
        """
        workdir = Path(workdir)
        config = read_config(workdir)
        tokenizer = load_tokenizer(workdir / "tokenizer")
        if fingerprint := config["data"].get("tokenizer_fingerprint"):
            check_tokenizer(tokenizer, fingerprint, str(workdir))
        stage = next((s for s in UNIFIED_STAGES if stage_steps(workdir, s)), "pretrain")
        try:
            modules = build_encoder(config), build_codec(config), build_unified(config)
        except KeyError as error:
            raise CheckpointError(
                f"{workdir / 'config.json'} lacks the key {error}, so another version of "
                "unicom_jax wrote it; use that version, or train again"
            ) from error
        encoder, codec, unified = (
            restore_params(workdir, name, module.abstract())
            for name, module in zip(("encoder", "codec", stage), modules, strict=True)
        )
        params = {"vision": encoder["vision"], "codec": codec, "unified": unified}
        return cls(config, tokenizer, params)

    @classmethod
    def untrained(cls, config: Mapping[str, Any], tokenizer: Tokenizer, seed: int = 0) -> Generator:
        """The same model with random weights: the baseline of every score."""
        keys = jax.random.split(jax.random.key(seed), 3)
        params = {
            "vision": build_encoder(config).vision.init(keys[0]),
            "codec": build_codec(config).init(keys[1]),
            "unified": build_unified(config).init(keys[2]),
        }
        return cls(config, tokenizer, params)

    # ---- what a user calls ----------------------------------------------------------------

    def answer(
        self,
        images: Sequence[np.ndarray],
        questions: Sequence[str],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """Answers question i about picture i (H, W, 3) uint8."""
        prompts = [
            [Image(image, UNDERSTOOD), Text(question)]
            for image, question in zip(images, questions, strict=True)
        ]
        write = partial(
            self.write, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed
        )
        return write(prompts)

    def caption(
        self, images: Sequence[np.ndarray], *, prompt: str = BRIEFLY, **options: Any
    ) -> list[str]:
        """Describes each picture; options as for `answer`."""
        return self.answer(images, [prompt] * len(images), **options)

    def draw(
        self,
        prompts: Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        think: bool = False,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        seed: int = 0,
        **plan: Any,
    ) -> list[Drawn]:
        """Draws each prompt.

        Args:
          size: (height, width) in pixels, multiples of the patch; the training size when None.
          think: write a plan first and draw by it.
          steps, guidance, sampler: as in `Drawing`; None takes the config's.
          seed: the same seed gives the same noise to the same place in the list.
          plan: how the plan is written: max_tokens, temperature, top_p as for `answer`.
        """
        segments: list[list[Segment]] = [[Text(prompt)] for prompt in prompts]
        thoughts = [""] * len(prompts)
        if think:
            thoughts = self.write(segments, opening="<think>", seed=seed, **plan)
            thoughts = [thought.split("</think>")[0] for thought in thoughts]
            segments = [
                [*prompt, Text(f"<think>{thought}</think>", supervised=True)]
                for prompt, thought in zip(segments, thoughts, strict=True)
            ]
        drawn = self.paint(
            segments, size=size, steps=steps, guidance=guidance, sampler=sampler, seed=seed
        )
        return [Drawn(image, thought) for image, thought in zip(drawn, thoughts, strict=True)]

    def edit(
        self,
        images: Sequence[np.ndarray],
        instructions: Sequence[str],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        seed: int = 0,
    ) -> list[np.ndarray]:
        """Changes picture i as instruction i says; keeps its size."""
        segments = [
            [Image(image, SOURCE), Text(instruction)]
            for image, instruction in zip(images, instructions, strict=True)
        ]
        return self.paint(segments, steps=steps, guidance=guidance, sampler=sampler, seed=seed)

    def reconstruct(self, images: Sequence[np.ndarray], *, seed: int = 0) -> list[np.ndarray]:
        """Each picture through encoder, codec and pixel decoder, at the size the encoder saw."""

        def run(batch: list[np.ndarray], first: int) -> list[np.ndarray]:
            patches, grids = self._patches(batch)
            noise = self._noise(seed, first, len(batch), self._pixel_shape(patches.shape[1]))
            painted = engine.reconstruct(
                self.models, self.params, patches, grids, noise, codec_steps=self.codec_steps
            )
            return self._pictures(painted, grids)

        return self._batched(run, images)

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Pooled encoder features (n, D) fp32."""

        def run(batch: list[np.ndarray], first: int) -> list[np.ndarray]:
            del first
            patches, grids = self._patches(batch)
            return list(
                np.asarray(engine.pooled_features(self.models, self.params, patches, grids))
            )

        return np.stack(self._batched(run, images))

    def prepared(self, image: np.ndarray) -> np.ndarray:
        """The picture as the encoder sees it: resized under the image policy."""
        config = self.sequence
        return pictures.prepare(image, config.images, config.patch, config.pool)

    # ---- conversations --------------------------------------------------------------------

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
        sampler: str | None = None,
        seed: int = 0,
    ) -> list[np.ndarray]:
        """The picture (H, W, 3) uint8 that follows each conversation."""
        defaults = self.config["sample"]
        settings = Drawing(
            steps=defaults["steps"] if steps is None else steps,
            guidance=float(defaults["guidance"] if guidance is None else guidance),
            sampler=defaults["sampler"] if sampler is None else sampler,
            shift=self.models.unified.flow_time.shift,
        )
        sizes = [self._drawn_grid(segments, size) for segments in conversations]
        results: list[np.ndarray | None] = [None] * len(conversations)
        for grid in sorted(set(sizes)):  # one program a grid
            chosen = [i for i, other in enumerate(sizes) if other == grid]

            def run(batch: list[int], first: int, grid=grid) -> list[np.ndarray]:
                del first
                segments = [conversations[i] for i in batch]
                return self._paint(segments, batch, grid, settings, seed)

            for i, picture in zip(chosen, self._batched(run, chosen), strict=True):
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

    # ---- batches --------------------------------------------------------------------------

    def _batched(
        self, run: Callable[[list[Item], int], list[Result]], items: Sequence[Item]
    ) -> list[Result]:
        """Runs `run(batch, index of its first item)` over full batches; the last is filled up."""
        size = min(self.batch_size, _power_of_two(len(items)))
        results: list[Result] = []
        for first in range(0, len(items), size):
            batch = list(items[first : first + size])
            filled = batch + [batch[-1]] * (size - len(batch))
            results += run(filled, first)[: len(batch)]
        return results

    def _patches(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Padded patches (B, N, C) uint8 and grids (B, 2)."""
        config = self.sequence
        patches = np.zeros((len(images), config.max_patches, 3 * config.patch**2), np.uint8)
        grids = np.zeros((len(images), 2), np.int32)
        for row, image in enumerate(images):
            prepared = self.prepared(image)
            cut = pictures.patchify(prepared, config.patch)
            patches[row, : len(cut)] = cut
            grids[row] = prepared.shape[0] // config.patch, prepared.shape[1] // config.patch
        return patches, grids

    def _pictures(self, patches: jax.Array, grids: np.ndarray) -> list[np.ndarray]:
        cut = np.asarray(to_bytes(patches))
        patch = self.sequence.patch
        return [
            pictures.unpatchify(one, int(rows), int(cols), patch)
            for one, (rows, cols) in zip(cut, grids, strict=True)
        ]

    def _pixel_shape(self, tokens: int) -> tuple[int, int]:
        return tokens, self.models.codec.pixel_decoder.channels

    @staticmethod
    def _noise(seed: int, first: int, count: int, shape: tuple[int, ...]) -> np.ndarray:
        """Noise by (seed, place in the request), whatever the batch size."""
        return np.stack(
            [
                np.random.default_rng([seed, index]).standard_normal(shape, np.float32)
                for index in range(first, first + count)
            ]
        )

    def _drawn_grid(
        self, segments: Sequence[Segment], size: tuple[int, int] | None
    ) -> tuple[int, int]:
        """Patch rows and columns of the picture to draw: asked for, the source's, or the usual."""
        config = self.sequence
        unit = config.patch * config.pool
        if size is None:
            sources = [s.pixels for s in segments if isinstance(s, Image)]
            side = self.config["data"]["image_size"]
            shape = self.prepared(sources[-1]).shape[:2] if sources else (side, side)
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
        limit = max_tokens or self.config["sample"]["max_tokens"]
        stop = np.array(
            [
                self.tokenizer.end_of_document,
                self.tokenizer.turn_end,
                self.tokenizer.vision_start,
            ],
            np.int32,
        )

        def run(batch: list[Document], first: int) -> list[tuple[str, bool]]:
            prefixes = collate(batch, self.sequence)
            places = np.arange(first, first + len(batch))
            keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(places)
            tokens, counts = engine.write(
                self.models, self.params, prefixes.batch, prefixes.lengths,
                prefixes.next_positions, stop, keys, max_tokens=limit, sampling=sampling,
            )  # fmt: skip
            return [
                self._words(row[:count])
                for row, count in zip(np.asarray(tokens), np.asarray(counts), strict=True)
            ]

        documents = [
            build_prefix(segments, self.tokenizer, self.sequence, opening)
            for segments in conversations
        ]
        return self._batched(run, documents)

    def _words(self, tokens: np.ndarray) -> tuple[str, bool]:
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

    def _paint(
        self,
        conversations: list[Sequence[Segment]],
        places: list[int],
        grid: tuple[int, int],
        settings: Drawing,
        seed: int,
    ) -> list[np.ndarray]:
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
            np.concatenate([self._noise(seed + salt, place, 1, shape) for place in places])
            for salt, shape in (
                (0, (tokens, self.models.codec.latent_dim)),
                (1_000_003, self._pixel_shape(grid[0] * grid[1])),
            )
        )
        grids = np.full((len(conversations), 2), grid, np.int32)
        slots = image_slots(prefixes, grid[0] // pool, grid[1] // pool)
        painted = engine.paint(
            self.models, self.params, prefixes.batch, slots.positions, slots.mask,
            grids, latent_noise, pixel_noise,
            pool=pool, settings=settings, codec_steps=self.codec_steps,
        )  # fmt: skip
        return self._pictures(painted, grids)


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
