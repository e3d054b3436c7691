"""What surrounds a caption: the picture and the question before it when it is written, and the turn
around it when it is read again to be drawn. Made once, from the sequence format of a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.build import sequence_config
from data_pipelines.segments import UNDERSTOOD, Image, Text
from data_pipelines.sequences.sequence import build_prefix
from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.config import ConfigError
from unicom_jax.core.batch import MixedBatch
from unicom_jax.core.positions import image_positions
from unicom_jax.inference.prompt import collate
from unicom_jax.inference.words import Words


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
    """The fixed parts of rows.

    Attributes:
      read: one row (1, S): the picture, the question, and the opening of the answer; without
        patches.
      length, next_position: its slots in use, and the rotary index of what follows.
      head, tail: token ids before and after a caption that is drawn; `tail` ends where the picture
        begins.
      answer: token ids between a question and its answer.
      stops: tokens that end a caption. `closing`: the one among them that ends a document.
      special: tokens that are not words, which the drawer does not see.
      no_mean: token that replaces each token of a prompt without words, except `picture_marks`;
        None: such a prompt is an empty turn.
      picture_marks: tokens around a picture.
      grid, slot_grid: rows and columns of patches and of slots of a picture.
      positions: those of the slots of a picture at place 0.
    """

    read: MixedBatch
    length: int
    next_position: int
    head: np.ndarray
    tail: np.ndarray
    answer: np.ndarray
    stops: np.ndarray
    closing: int
    special: np.ndarray
    no_mean: int | None
    picture_marks: tuple[int, int]
    grid: tuple[int, int]
    slot_grid: tuple[int, int]
    positions: np.ndarray

    @property
    def slots(self) -> int:
        """S of `read`."""
        return self.read.tokens.shape[1]


def make_template(config: Mapping[str, Any], tokenizer: Tokenizer, prompt: str) -> Template:
    """The template of a run.

    Args:
      prompt: the request for a description of a picture.

    Raises:
      ConfigError: pictures have several sizes or two policies, but all rows of a rollout have the
        same layout.
    """
    data, sequence = config["data"], sequence_config(config)
    if not sequence.images.square or sequence.understood != "same":
        raise ConfigError(
            f"data.policy={data['policy']} and understood_policy={data['understood_policy']}: "
            "reinforcement learning draws and reads pictures of one size; set data.policy=fixed, "
            "crop or pad, and data.understood_policy=same"
        )
    side = data["image_size"]
    blank = np.zeros((side, side, 3), np.uint8)
    document = build_prefix([Image(blank, UNDERSTOOD), Text(prompt)], tokenizer, sequence)
    prefixes = collate([document], sequence)
    closing = tokenizer.encode(sequence.response_close)[0]
    patches = side // sequence.patch
    slots = patches // sequence.unit

    def ids(text: str) -> np.ndarray:
        return np.array(tokenizer.encode(text) if text else [], np.int32)

    behind = ids(sequence.prompt_close)
    return Template(
        read=prefixes.batch.replace(parts=None),
        length=len(document),
        next_position=document.next_position,
        head=ids(sequence.prompt_open),
        tail=np.append(behind, np.int32(tokenizer.vision_start)),
        answer=behind,
        stops=np.unique([*Words(tokenizer).stops, closing]).astype(np.int32),
        closing=closing,
        special=np.array(sorted(tokenizer.special_ids.values()), np.int32),
        no_mean=tokenizer.require("no_mean") if sequence.unconditional == "masked" else None,
        picture_marks=(tokenizer.vision_start, tokenizer.vision_end),
        grid=(patches, patches),
        slot_grid=(slots, slots),
        positions=image_positions(0, slots, slots, sequence.image_positions),
    )
