"""Documents without their words or pictures, for guidance: occasional in training, a separate
branch in sampling, and in the same form in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.segments import Segment
from data_pipelines.sequences.document import Document
from data_pipelines.sequences.format import SequenceConfig
from data_pipelines.sequences.sequence import build_document, build_prefix
from data_pipelines.sequences.tasks import WORDS, choose_dropped, drop, unconditional_segments
from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.core.batch import Role


def build_training(
    segments: Sequence[Segment],
    tokenizer: Tokenizer,
    config: SequenceConfig,
    rng: np.random.Generator,
    key: str = "document",
) -> Document:
    """As `build_document`, but at times without the words or the pictures, for guidance.

    `build_unconditional` gives the same form in sampling.
    """
    dropped = choose_dropped(segments, config.cfg_dropout, rng, config.image_dropout)
    if dropped == WORDS and config.unconditional == "masked":
        return mask_words(build_document(segments, tokenizer, config, key), tokenizer)
    return build_document(drop(segments, dropped), tokenizer, config, key)


def build_unconditional(
    segments: Sequence[Segment],
    tokenizer: Tokenizer,
    config: SequenceConfig,
    opening: str = "",
    key: str = "prompt",
) -> Document:
    """As `build_prefix`, but without words, in the form in which training leaves them out."""
    if config.unconditional == "masked":
        return mask_words(build_prefix(segments, tokenizer, config, opening, key), tokenizer)
    return build_prefix(unconditional_segments(segments), tokenizer, config, opening, key)


def mask_words(document: Document, tokenizer: Tokenizer) -> Document:
    """The document at its full length, with every token except the marks of images replaced by
    `<no_mean>`.

    Marks of turns are masked too; images, including the source of an edit, and targets stay
    (Cheers, arXiv:2603.12793, released code). In a training document only the slots before its last
    drawn image are masked.

    Raises:
      TokenizerError: the tokenizer has no such token.
    """
    places = document.mask.context_stop[document.roles == Role.NOISY]
    before = np.arange(len(document)) < (places.max() if len(places) else len(document))
    marks = tokenizer.vision_start, tokenizer.vision_end
    words = before & (document.roles == Role.TEXT) & ~np.isin(document.tokens, marks)
    no_mean = np.int32(tokenizer.require("no_mean"))
    return dataclasses.replace(document, tokens=np.where(words, no_mean, document.tokens))
