"""Batches of pictures with one caption each, for the encoder and codec stages."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from data_pipelines.examples import Example
from data_pipelines.faults import SourceError
from data_pipelines.images import ImagePolicy, patchify, prepare
from data_pipelines.loading.loader import Loader, LoaderConfig
from data_pipelines.sequences.mixture import ATTEMPTS, Schedule
from data_pipelines.sequences.tasks import BrokenExample, draw_caption
from data_pipelines.sequences.tokenizer import Tokenizer
from data_pipelines.sources.broken import read_or_next


class PictureBatch(NamedTuple):
    """B pictures of at most N patches, each with one caption of at most T tokens.

    Attributes:
      patches: (B, N, patch * patch * 3) uint8, raster order, zeros behind the last patch.
      grids: (B, 2) int32 (rows, columns) of patches.
      tokens: (B, T) int32, padded with `<|endoftext|>`.
      lengths: (B,) int32 tokens of each caption.
    """

    patches: np.ndarray
    grids: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray


@dataclasses.dataclass(frozen=True)
class PictureConfig:
    """How pictures and captions are written.

    Attributes:
      patch: pixels on a side of a patch.
      images: how pictures are resized.
      pool: the patch grid's sides are multiples of it (a token-pooling compressor).
      text_length: T. Longer captions are cut, as in SigLIP, and counted.
      captions: "any" draws one of an example's captions; "last" takes the most detailed one, which
        few other pictures share: the contrastive loss takes every other caption for a wrong one;
        "none" takes pictures alone, so that they need no caption.
    """

    patch: int
    images: ImagePolicy
    pool: int = 1
    text_length: int = 64
    captions: str = "any"

    def __post_init__(self) -> None:
        if self.captions not in ("any", "last", "none"):
            raise ValueError(f"captions {self.captions!r} is unknown; choose any, last or none")
        self.images.target_size(1, 1, self.patch * self.pool)  # raises where sizes do not agree


class WeightedSource(NamedTuple):
    """Examples, their share of the pictures, and the source's name where there are several."""

    records: Sequence[Example]
    weight: float = 1.0
    name: str = ""


class Found(NamedTuple):
    """What a row holds: a prepared picture, its caption ("" without), and a question and its answer
    in token ids where one is asked."""

    image: np.ndarray
    caption: str = ""
    asked: tuple[list[int], list[int]] = ([], [])


@dataclasses.dataclass(frozen=True)
class PictureBatches:
    """Step to this process's part of a global batch. Records that cannot be read or used are passed
    over and counted.

    Every epoch has its own order, every example one caption an epoch.
    """

    sources: Sequence[WeightedSource]
    tokenizer: Tokenizer
    pictures: PictureConfig
    config: LoaderConfig
    seed: int

    @functools.cached_property
    def _schedule(self) -> Schedule:
        return Schedule([source.weight for source in self.sources], self.seed)

    @functools.cached_property
    def _orders(self) -> list[grain.MapDataset]:
        return [
            grain.MapDataset.range(len(source.records)).seed(self.seed + number).shuffle().repeat()
            for number, source in enumerate(self.sources)
        ]

    def __call__(self, step: int) -> tuple[PictureBatch, Counter]:
        found, counts = self.found(step)
        return self.batch(found, counts), counts

    def found(self, step: int) -> tuple[list[Found], Counter]:
        """What this process's rows of a step hold."""
        own = self.config.own_rows
        counts = Counter(documents=len(own), truncated=0, unreadable=0, broken=0)
        places = (step * self.config.rows + place for place in own)
        return [self._find(index, counts) for index in places], counts

    def batch(self, found: Sequence[Found], counts: Counter) -> PictureBatch:
        """Its arrays; captions that are cut are counted."""
        pictures, rows = self.pictures, len(found)
        channels = 3 * pictures.patch**2
        most = pictures.images.max_patches(pictures.patch, pictures.pool)
        text = (rows, pictures.text_length)
        batch = PictureBatch(
            patches=np.zeros((rows, most, channels), np.uint8),
            grids=np.zeros((rows, 2), np.int32),
            tokens=np.full(text, self.tokenizer.end_of_document, np.int32),
            lengths=np.zeros(rows, np.int32),
        )
        for row, (image, caption, _) in enumerate(found):
            cut = patchify(image, pictures.patch)
            batch.patches[row, : len(cut)] = cut
            batch.grids[row] = [side // pictures.patch for side in image.shape[:2]]
            ids = self.tokenizer.encode(caption) if caption else []
            counts["truncated"] += len(ids) > pictures.text_length
            ids = ids[: pictures.text_length]
            batch.tokens[row, : len(ids)], batch.lengths[row] = ids, len(ids)
        return batch

    def _find(self, index: int, counts: Counter) -> Found:
        """Of the example whose turn it is, or of the next that can be used."""
        pick = self._schedule.pick(index)
        (records, _, name), place = (
            self.sources[pick.entry],
            int(self._orders[pick.entry][pick.ordinal]),
        )
        if name:
            counts[f"source/{name}"] += 1
        for shift in range(ATTEMPTS):
            example, unreadable = read_or_next(records, (place + shift) % len(records))
            counts["unreadable"] += unreadable
            try:
                return self._use(example, index)
            except ValueError as error:
                counts["broken"] += 1
                reason = error if isinstance(error, BrokenExample) else f"{example.key!r}: {error}"
        raise SourceError(
            f"{ATTEMPTS} examples in a row cannot be used; the reason for the last one: {reason}"
        )

    def _use(self, example: Example, index: int) -> Found:
        """Raises ValueError where the example lacks what is wanted."""
        pictures = self.pictures
        _require_picture(example)
        image = prepare(example.image, pictures.images, pictures.patch, pictures.pool)
        if pictures.captions == "none":
            return Found(image)
        rng = np.random.default_rng([self.seed, index])
        return Found(image, draw_caption(example, rng, pictures.captions == "last"))


def _require_picture(example: Example) -> None:
    if example.image is None:
        raise BrokenExample(
            f"example {example.key!r} has no picture; choose a source with pictures"
        )


def make_picture_loader(
    sources: Sequence[WeightedSource],
    tokenizer: Tokenizer,
    pictures: PictureConfig,
    config: LoaderConfig,
    *,
    seed: int,
    start: int = 0,
    kind: Callable[..., PictureBatches] = PictureBatches,
) -> Loader[Any]:
    """Batches of `config.rows` pictures as a pure function of (seed, step); of which kind, `kind`
    says.

    `Loader.counts` has "documents" (pictures), "truncated" (captions longer than T), "unreadable"
    and "broken" (records in whose place another was read, and examples without a usable caption),
    and of several sources "source/NAME".

    Raises:
      ValueError: an empty source.
    """
    for source in sources:
        if len(source.records) == 0:
            raise ValueError(
                f"the source{f' {source.name!r}' * bool(source.name)} is empty; give it at least "
                "one example"
            )
    return Loader(kind(sources, tokenizer, pictures, config, seed), config, start)
