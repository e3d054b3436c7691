"""Plain batches for the first two stages: pictures with captions (encoder), pictures alone (codec)."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from data_pipelines import images
from data_pipelines.examples import Example
from data_pipelines.loader import Loader, LoaderConfig
from data_pipelines.tasks import BrokenExample
from data_pipelines.tokenizer import Tokenizer


class ImageBatch(NamedTuple):
    """B pictures of at most N patches.

    patches: (B, N, patch * patch * 3) uint8, zeros behind the last patch. grids: (B, 2) int32.
    """

    patches: np.ndarray
    grids: np.ndarray


class ImageTextBatch(NamedTuple):
    """B pictures, each with one caption of at most T tokens.

    patches, grids: as in `ImageBatch`. tokens: (B, T) int32, padded with `<|endoftext|>`. lengths:
    (B,) int32 tokens of each caption.
    """

    patches: np.ndarray
    grids: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray


@dataclasses.dataclass(frozen=True)
class ImageBatches:
    """Step to this host's part of a global batch of pictures, each epoch in a new order."""

    source: Sequence[Example]
    seed: int
    policy: images.ImagePolicy
    patch: int
    config: LoaderConfig

    @functools.cached_property
    def _order(self) -> grain.MapDataset:
        return grain.MapDataset.range(len(self.source)).seed(self.seed).shuffle().repeat()

    def indices(self, step: int) -> range:
        """Which examples of the endless stream this host takes at a step."""
        first = step * self.config.rows + self.config.host * self.config.host_rows
        return range(first, first + self.config.host_rows)

    def example(self, index: int) -> Example:
        return self.source[int(self._order[index])]

    def pictures(self, examples: Sequence[Example]) -> ImageBatch:
        size = (len(examples), self.policy.max_patches(self.patch), 3 * self.patch**2)
        patches, grids = np.zeros(size, np.uint8), np.zeros((len(examples), 2), np.int32)
        for row, example in enumerate(examples):
            try:
                picture = images.prepare(example.image, self.policy, self.patch)
            except ValueError as error:
                raise BrokenExample(f"example {example.key!r}: {error}") from error
            cut = images.patchify(picture, self.patch)
            patches[row, : len(cut)] = cut
            grids[row] = picture.shape[0] // self.patch, picture.shape[1] // self.patch
        return ImageBatch(patches, grids)

    def __call__(self, step: int) -> tuple[ImageBatch, Counter]:
        examples = [self.example(index) for index in self.indices(step)]
        return self.pictures(examples), Counter(documents=len(examples))


@dataclasses.dataclass(frozen=True)
class ImageTextBatches:
    """Step to this host's part of a global batch of captioned pictures; the caption is drawn."""

    images: ImageBatches
    tokenizer: Tokenizer
    text_tokens: int

    def __call__(self, step: int) -> tuple[ImageTextBatch, Counter]:
        examples, counts = [], Counter()
        shape = (self.images.config.host_rows, self.text_tokens)
        tokens = np.full(shape, self.tokenizer.end_of_document, np.int32)
        lengths = np.zeros(shape[0], np.int32)
        for row, index in enumerate(self.images.indices(step)):
            example = self.images.example(index)
            rng = np.random.default_rng([self.images.seed, index])
            ids = self.tokenizer.encode(_caption(example, rng))
            counts["truncated"] += len(ids) > self.text_tokens
            ids = ids[: self.text_tokens]
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
            examples.append(example)
        counts["documents"] = len(examples)
        return ImageTextBatch(*self.images.pictures(examples), tokens, lengths), counts


def make_image_loader(
    source: Sequence[Example],
    config: LoaderConfig,
    *,
    seed: int,
    policy: images.ImagePolicy,
    patch: int,
    start: int = 0,
) -> Loader[ImageBatch]:
    """The loader of the codec stage. `Loader.counts` has "documents".

    Raises:
      ValueError: an empty source, or sizes of the policy that are no multiple of the patch.
    """
    return Loader(_image_batches(source, config, seed, policy, patch), config, start)


def make_image_text_loader(
    source: Sequence[Example],
    config: LoaderConfig,
    *,
    seed: int,
    policy: images.ImagePolicy,
    patch: int,
    tokenizer: Tokenizer,
    text_tokens: int,
    start: int = 0,
) -> Loader[ImageTextBatch]:
    """The loader of the encoder stage. Captions longer than `text_tokens` are cut, as in SigLIP,
    and counted in `Loader.counts["truncated"]`.
    """
    batches = _image_batches(source, config, seed, policy, patch)
    return Loader(ImageTextBatches(batches, tokenizer, text_tokens), config, start)


def _image_batches(
    source: Sequence[Example],
    config: LoaderConfig,
    seed: int,
    policy: images.ImagePolicy,
    patch: int,
) -> ImageBatches:
    if len(source) == 0:
        raise ValueError("the source is empty; give it at least one example")
    policy.target_size(1, 1, patch)  # raises here, rather than in a thread, where sizes disagree
    return ImageBatches(source, seed, policy, patch, config)


def _caption(example: Example, rng: np.random.Generator) -> str:
    if not example.captions or not all(caption.strip() for caption in example.captions):
        raise BrokenExample(
            f"example {example.key!r} has no caption or an empty one; fill it in, or remove it"
        )
    return example.captions[int(rng.integers(len(example.captions)))]
