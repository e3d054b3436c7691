"""Documents without their words or pictures, for guidance: in training at times, in sampling as a
branch of its own, in the same form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.segments import Segment
from data_pipelines.sequences.format import SequenceConfig
from data_pipelines.sequences.sequence import Document, build_document, build_prefix
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
    """As `build_document`, but at times without its words or its pictures, for guidance.

    Sampling has `build_unconditional` for the same form.
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
    """As `build_prefix`, but without words, as training left them out."""
    if config.unconditional == "masked":
        return mask_words(build_prefix(segments, tokenizer, config, opening, key), tokenizer)
    return build_prefix(unconditional_segments(segments), tokenizer, config, opening, key)


def mask_words(document: Document, tokenizer: Tokenizer) -> Document:
    """The document at its full length, each token a `<no_mean>` but for the marks of images.

    Marks of turns are masked too; images stay, the source of an edit among them, and so does what
    is to be predicted (Cheers, arXiv:2603.12793, released code). In a training document this holds
    for the slots before its last drawn image.

    Raises:
      TokenizerError: the tokenizer has no such token.
    """
    places = document.mask.context_stop[document.roles == Role.NOISY]
    before = np.arange(len(document)) < (places.max() if len(places) else len(document))
    marks = tokenizer.vision_start, tokenizer.vision_end
    words = before & (document.roles == Role.TEXT) & ~np.isin(document.tokens, marks)
    no_mean = np.int32(tokenizer.require("no_mean"))
    return dataclasses.replace(document, tokens=np.where(words, no_mean, document.tokens))
