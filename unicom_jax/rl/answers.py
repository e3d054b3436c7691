"""The reward of a caption from which a question about its picture can be answered."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from unicom_jax.core.module import Params
from unicom_jax.families.unified import UnifiedModel
from unicom_jax.rl.rows import every_row, packed, text_rows
from unicom_jax.rl.samples import Originals, Samples
from unicom_jax.rl.template import Template

ANSWER = 4  # index of the answer among the pieces of a row


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionAnswers:
    """1 if a model that reads the caption but not the picture answers the question correctly, else
    0 ("CapRL": arXiv 2509.22647).

    An answer is correct if each of its tokens is the likeliest after those before it, so that
    greedy decoding would write it.

    Attributes:
      model: the model that answers, with the weights `frozen[weights]`.
    """

    model: UnifiedModel
    template: Template
    weights: str

    def __call__(self, frozen: Params, originals: Originals, samples: Samples) -> jax.Array:
        rows, params, around = len(originals.grids), frozen[self.weights], self.template
        head, behind = (every_row(ids, rows) for ids in (around.head, around.answer))
        pieces = head, samples.tokens, originals.questions, behind, originals.answers
        tokens, parts = packed(*pieces)
        hidden = self.model.read(params, text_rows(tokens), None)[:, :-1]
        likeliest = jnp.argmax(self.model.logits(params, hidden), axis=-1)
        asked = (parts[:, 1:] == ANSWER) & (tokens[:, 1:] >= 0)
        right = jnp.all(jnp.where(asked, likeliest == tokens[:, 1:], True), axis=1)
        return jnp.float32(right & jnp.any(asked, axis=1))
