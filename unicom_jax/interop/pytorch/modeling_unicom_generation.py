"""A user's methods: describe, answer, draw, edit, reconstruct, converse.

The prefix of a picture is read once into a key-value cache. A flow step then computes only the
slots of the picture; the conditional and the unconditional branch run as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as PilImage
from torch import Tensor

from .image_processing_unicom import Picture
from .modeling_unicom_flow import begin_from, check_guidance, guide, integrate, latent_shift
from .modeling_unicom_language import interval_mask
from .modeling_unicom_reading import Context
from .modeling_unicom_writing import Writing
from .sequence_unicom import (
    SOURCE,
    VISION_START,
    Image,
    Role,
    Segment,
    Words,
    image_positions,
)

Grid = tuple[int, int]
# Latent noise (n, d) and pixel noise (N, C): two arrays or lists, with an entry for each picture.
Noise = tuple[Sequence[Any], Sequence[Any]]
Pictures = Picture | Sequence[Picture]
Texts = str | Sequence[str]
DESCRIBE = "Describe briefly."
LATENTS, PIXELS = 0, 1  # the noise streams of a picture


class Generation(Writing):
    """Methods of `UnicomModel`; pictures are PIL images or (H, W, 3) uint8 arrays.

    Pictures and texts are lists of the same length. A single picture or text is a list of one; a
    single text with several pictures is used for each of them.
    """

    # ---- requests -----------------------------------------------------------------------------

    def caption(self, images: Pictures, prompt: str = DESCRIBE, **options: Any) -> list[str]:
        """Describes each picture; options as for `write`."""
        return self.answer(images, prompt, **options)

    def answer(self, images: Pictures, questions: Texts, **options: Any) -> list[str]:
        """Answers question i about picture i; options as for `write`."""
        pairs = _pairs(images, questions, "questions")
        return self.write([[Image(image), Words(text)] for image, text in pairs], **options)

    def draw(self, prompts: Texts, *, think: bool = False, **options: Any) -> list[PilImage.Image]:
        """Draws each prompt; options as for `paint`. `think`: write a plan first and follow it."""
        prompts = [prompts] if isinstance(prompts, str) else prompts
        segments: list[list[Segment]] = [[Words(prompt)] for prompt in prompts]
        if think:
            thoughts = self.write(segments, opening="<think>")
            thoughts = [thought.split("</think>")[0] for thought in thoughts]
            segments = [
                [*prompt, Words(f"<think>{thought}</think>", response=True)]
                for prompt, thought in zip(segments, thoughts, strict=True)
            ]
        return self.paint(segments, **options)

    def edit(self, images: Pictures, instructions: Texts, **options: Any) -> list[PilImage.Image]:
        """Edits picture i by instruction i; options as for `paint`."""
        pairs = _pairs(images, instructions, "instructions")
        return self.paint([[Image(image, SOURCE), Words(text)] for image, text in pairs], **options)

    @torch.no_grad()
    def reconstruct(
        self,
        images: Pictures,
        *,
        noise: Sequence[Any] | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        batch_size: int = 16,
    ) -> list[PilImage.Image]:
        """Encodes and decodes each picture, at the size that the model sees.

        `noise`: pixel noise (N, C) of each picture.
        """
        processor = self.processor.image_processor
        prepared = [processor.prepare(image) for image in _listed(images)]
        grids = [processor.grid(image) for image in prepared]

        def run(batch: list[int], grid: Grid) -> list[PilImage.Image]:
            latents = self.encode([prepared[i] for i in batch])[1]
            shape = grid[0] * grid[1], self.pixel_channels
            drawn = self._noise(noise, batch, PIXELS, shape, seed, generator)
            return self.painted(latents, grid, drawn)

        return _by_key(run, grids, batch_size)

    # ---- pictures -------------------------------------------------------------------------------

    @torch.no_grad()
    def paint(
        self,
        conversations: Sequence[Sequence[Segment]],
        *,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        sampler: str | None = None,
        grid: str | None = None,
        edit_start: float | None = None,
        noise: Noise | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        batch_size: int = 16,
    ) -> list[PilImage.Image]:
        """The picture that follows each conversation.

        Args:
          size: (height, width) in pixels; the source's or the training size when None.
          steps, guidance, guidance_interval, sampler: None: the model's own. Guidance 1 draws
            without it; a larger scale follows the words more closely, at twice the cost, at flow
            times inside the interval. sampler is "euler" or "heun".
          grid: the flow times, see `modeling_unicom_flow.time_grid`.
          edit_start: flow time, before its shift, at which an edit begins, as a mixture of noise
            and this share of its source; 0: with noise alone.
          noise: latent and pixel noise of each picture. By default the noise follows from `seed`
            and the picture's place in the list, as in JAX, or from a `generator`.
        """
        defaults = self.defaults
        flow = {
            "steps": defaults.flow_steps if steps is None else steps,
            "sampler": defaults.sampler if sampler is None else sampler,
            "guidance": float(defaults.guidance if guidance is None else guidance),
            "interval": defaults.guidance_interval
            if guidance_interval is None
            else guidance_interval,
            "times": defaults.flow_grid if grid is None else grid,
        }
        check_guidance(flow["guidance"], flow["interval"])
        if flow["times"] not in self.time_grids:
            raise ValueError(
                f"grid {flow['times']!r}: this model supports only {' and '.join(self.time_grids)}"
            )
        start = float(defaults.edit_start if edit_start is None else edit_start)
        sources = [self._source(said) if start else None for said in conversations]
        grids = [self._drawn_grid(said, size) for said in conversations]
        for source, drawn in zip(sources, grids, strict=True):
            if source is not None and self.processor.image_processor.grid(source) != drawn:
                raise ValueError(
                    f"edit_start={start:g} begins with the picture to edit, of "
                    f"{source.shape[:2]} pixels; leave the size out, or set edit_start=0"
                )

        def run(batch: list[int], key: tuple[Grid, bool]) -> list[PilImage.Image]:
            grid, begun = key
            tokens = self.processor.format.token_grid(grid, Role.NOISY)
            shapes = (
                (tokens[0] * tokens[1], self.latent_dim),
                (grid[0] * grid[1], self.pixel_channels),
            )
            latent_noise, pixel_noise = (
                self._noise(given, batch, stream, shape, seed, generator)
                for given, shape, stream in zip(
                    noise or (None, None), shapes, (LATENTS, PIXELS), strict=True
                )
            )
            some = [conversations[i] for i in batch]
            begin = {}
            if begun:
                begin = {"source": self.encode([sources[i] for i in batch])[1], "start": start}
            drawn = self.draw_latents(some, tokens, latent_noise, **flow, **begin)
            return self.painted(drawn, grid, pixel_noise)

        keys = [(one, source is not None) for one, source in zip(grids, sources, strict=True)]
        return _by_key(run, keys, batch_size)

    def _source(self, segments: Sequence[Segment]) -> np.ndarray | None:
        """The prepared picture to edit: the last one, if that is a source."""
        images = [segment for segment in segments if isinstance(segment, Image)]
        if not images or images[-1].use != SOURCE:
            return None
        return self.processor.image_processor.prepare(images[-1].pixels)

    def draw_latents(
        self,
        conversations: Sequence[Sequence[Segment]],
        grid: Grid,
        noise: Tensor,
        *,
        steps: int,
        guidance: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        sampler: str = "euler",
        times: str = "even",
        source: Tensor | None = None,
        start: float = 0.0,
    ) -> Tensor:
        """Normalised latents (B, n, d) of a picture of `grid` tokens after each conversation.

        source: latents with which they begin if `start` is later than 0.
        """
        makers = [self.processor.prefix]
        if guidance != 1.0:
            makers.append(self.processor.wordless)
        prefixes = [make(c, VISION_START) for make in makers for c in conversations]
        field = self.begin_drawing(self.read(prefixes), grid)

        def velocity(latents: Tensor, time: Tensor) -> Tensor:
            both = torch.cat([latents] * len(makers))
            speeds = field(both, time.to(both).expand(len(both))).chunk(len(makers))
            return speeds[0] if len(speeds) == 1 else guide(*speeds, guidance, time, interval)

        # flow_shift 0: by each picture's own N tokens of d channels, as it was trained.
        shift = self.defaults.flow_shift or latent_shift(*noise.shape[1:])
        if source is not None:
            noise = begin_from(source, noise, start, shift, times)
        return integrate(velocity, noise, steps, sampler, shift, start=start, grid=times)

    def slots_behind(self, context: Context, grid: Grid) -> Callable[[Tensor], Tensor]:
        """A function: vectors (B, s, W) -> hidden states, of a picture of `grid` slots after each
        prefix."""
        count, lengths, device = grid[0] * grid[1], context.lengths, context.lengths.device
        offsets = torch.tensor(image_positions(0, *grid, self.format.positions), device=device)
        positions = context.next_positions[:, None, None] + offsets
        zeros = torch.zeros_like(lengths)
        ends = [zeros, lengths, zeros + context.start, zeros + context.start + count]
        intervals = torch.stack(ends, dim=-1)[:, None].expand(-1, count, -1)
        mask = interval_mask(intervals, context.start + count)

        def run(hidden: Tensor) -> Tensor:
            hidden = hidden.to(self.dtype)
            return self.language_model(hidden, positions, mask, context.cache, keep=False)

        return run

    # ---- defined by each family -----------------------------------------------------------------

    time_grids: tuple[str, ...] = ("even",)  # others need the velocity at t = 1

    @property
    def latent_dim(self) -> int:
        """Channels of the latents that are drawn."""
        return self.config.codec["latent_dim"]

    @property
    def pixel_channels(self) -> int:
        """Channels of the noise from which latents are painted; 0: no noise is needed."""
        raise NotImplementedError(f"{type(self).__name__} paints nothing")

    def encode(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """What the model reads of prepared pictures of one size, and their normalised latents
        (B, n, d)."""
        raise NotImplementedError(f"{type(self).__name__} reads no pictures")

    def begin_drawing(self, context: Context, grid: Grid) -> Callable[[Tensor, Tensor], Tensor]:
        """A function (noisy latents (B, n, d), time (B,)) -> velocity, of a picture of `grid`
        latents after each prefix."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing")

    def painted(self, latents: Tensor, grid: Grid, noise: Tensor) -> list[PilImage.Image]:
        """Pictures from latents (B, n, d) and pixel noise (B, N, C), of a grid of patches."""
        raise NotImplementedError(f"{type(self).__name__} paints nothing")

    # ---- shapes and noise -----------------------------------------------------------------------

    def _drawn_grid(self, segments: Sequence[Segment], size: tuple[int, int] | None) -> Grid:
        """Patches of the picture to draw: by `size`, else as many as the source has, else as in
        training."""
        images = self.processor.image_processor
        usual = (self.defaults.image_size,) * 2
        if size is None:
            sources = [s.pixels for s in segments if isinstance(s, Image)]
            size = images.prepare(sources[-1]).shape[:2] if sources else usual
        elif images.policy == "fixed" and tuple(size) != usual:
            raise ValueError(f"size {size}: this model draws {usual} only; leave the size out")
        unit, grid = images.patch * images.pool, (size[0] // images.patch, size[1] // images.patch)
        if size[0] % unit or size[1] % unit or not 0 < grid[0] * grid[1] <= images.max_patches:
            raise ValueError(
                f"size {tuple(size)}: sides must be multiples of {unit} and give at most "
                f"{images.max_patches} patches of {images.patch} pixels"
            )
        return grid

    def _noise(
        self,
        given: Sequence[Any] | None,
        places: list[int],
        stream: int,
        shape: tuple[int, ...],
        seed: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """(B, *shape) fp32, of the pictures at `places` of the request."""
        if given is not None:
            stacked = torch.stack([torch.as_tensor(given[i]) for i in places])
            return stacked.float().to(self.work_device)
        if generator is not None:
            device = generator.device
            drawn = torch.randn(len(places), *shape, generator=generator, device=device)
            return drawn.to(self.work_device)
        sources = [np.random.SeedSequence(seed, spawn_key=(stream, place)) for place in places]
        drawn = [np.random.default_rng(one).standard_normal(shape, np.float32) for one in sources]
        return torch.from_numpy(np.stack(drawn)).to(self.work_device)


def _listed(images: Pictures) -> list[Picture]:
    return list(images) if isinstance(images, list | tuple) else [images]


def _pairs(images: Pictures, texts: Texts, name: str) -> list[tuple[Picture, str]]:
    """Each picture with its text.

    Raises:
      ValueError: not as many texts as pictures.
    """
    listed = _listed(images)
    texts = [texts] * len(listed) if isinstance(texts, str) else texts
    if len(texts) != len(listed):
        raise ValueError(
            f"{len(listed)} images and {len(texts)} {name}; give one each, or one text for all"
        )
    return list(zip(listed, texts, strict=True))


def to_bytes(values: Tensor) -> np.ndarray:
    """-1..1 to uint8, clipped and rounded to the nearest level."""
    return ((values + 1.0).clamp(0.0, 2.0) * 127.5).round().to(torch.uint8).cpu().numpy()


def _by_key(
    run: Callable[[list[int], Any], list[PilImage.Image]], keys: list[Any], batch_size: int
) -> list[PilImage.Image]:
    """`run(places, key)` on batches of equal keys; results in the order of `keys`."""
    results: dict[int, PilImage.Image] = {}
    for key in sorted(set(keys)):
        chosen = [i for i, other in enumerate(keys) if other == key]
        for batch in _chunks(chosen, batch_size):
            results |= dict(zip(batch, run(batch, key), strict=True))
    return [results[i] for i in range(len(keys))]


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
