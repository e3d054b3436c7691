"""A suite without scores: what a head with gated details (Cheers) draws with and without them."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipelines.examples import Example
from unicom_jax.evaluation.generation import Prompt, draw_all, shape_of
from unicom_jax.evaluation.protocol import UnifiedModel
from unicom_jax.evaluation.records import Details, Log
from unicom_jax.evaluation.suite import (
    EvaluationConfig,
    Progress,
    SuiteResult,
    balanced,
    in_batches_of_one_shape,
    silent,
)


def evaluate_details(
    model: UnifiedModel,
    prompts: Sequence[Prompt],
    examples: Sequence[Example],
    config: EvaluationConfig,
    *,
    progress: Progress = silent,
) -> SuiteResult:
    """Draws `config.shown` pictures twice from the same noise: by semantics alone, and in full.

    They are drawn equally from all categories of prompts or, without prompts, from the first
    captions of the examples.

    Raises:
      ValueError: the model's head adds no details.
    """
    alone = model.without_details
    if alone is None:
        raise ValueError("this model's head has no gate for details")
    chosen = balanced(prompts, lambda prompt: prompt.category, config.shown)
    count = 0 if chosen else min(config.shown, len(examples))
    asked = [(prompt.text, prompt.reference()) for prompt in chosen]
    asked += [(one.captions[0], one.image) for one in (examples[i] for i in range(count))]
    shapes = [shape_of(model, picture) for _, picture in asked]
    records: Log[Details] = Log(config.shown)
    for first, shape, batch in in_batches_of_one_shape(asked, shapes, config.batch_size, progress):
        texts = [text for _, (text, _) in batch]
        pairs = [draw_all(one, texts, shape, config, first) for one in (alone, model)]
        for (index, _), text, semantics, whole in zip(batch, texts, *pairs, strict=True):
            records.append(Details(f"prompt/{index}", text, semantics, whole))
    return SuiteResult([], records)
