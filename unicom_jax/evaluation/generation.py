"""Suite: pictures drawn from prompts, judged by category or found again by the encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.examples import Example
from unicom_jax.core.picture import Picture
from unicom_jax.evaluation.intervals import mean_of_proportions
from unicom_jax.evaluation.metrics import retrieval_ranks
from unicom_jax.evaluation.protocol import UnifiedModel
from unicom_jax.evaluation.records import Generation
from unicom_jax.evaluation.scores import Score, proportion
from unicom_jax.evaluation.suite import (
    EvaluationConfig,
    Progress,
    SuiteResult,
    by_kind,
    in_batches,
    silent,
)

Verdict = tuple[bool, str]  # correct, and why not ("" when it is)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt of a category, with the judge of its pictures and a picture that is right."""

    category: str
    text: str
    judge: Callable[[Picture], Verdict]
    reference: Picture


def evaluate_generation(
    model: UnifiedModel,
    prompts: Sequence[Prompt],
    config: EvaluationConfig,
    *,
    progress: Progress = silent,
) -> SuiteResult:
    """Share of pictures that their prompt's judge accepts by category, and the categories' mean.

    The categories are GenEval's (Ghosh et al. 2023). Chance is a painter who draws without fault
    but never reads: each prompt judged on the right picture of the next prompt of its category.
    """
    records: list[Generation] = []
    for start, batch in in_batches(prompts, config.batch_size, progress):
        drawn = _draw(model, [prompt.text for prompt in batch], config, start)
        for prompt, image in zip(batch, drawn, strict=True):
            correct, reason = prompt.judge(image)
            records.append(Generation(prompt.category, prompt.text, image, correct, reason))
    if not records:
        return SuiteResult([], [])
    blind = {kind: _blind(group) for kind, group in by_kind(prompts, _category).items()}
    scores = [
        proportion(f"generation/{kind}", [bool(r.correct) for r in group], blind[kind])
        for kind, group in by_kind(records, _category).items()
    ]
    overall = Score(
        "generation/overall",
        mean_of_proportions([score.interval for score in scores]),
        len(records),
        sum(blind.values()) / len(blind),
    )
    return SuiteResult([*scores, overall], list(records))


def evaluate_retrieval(
    model: UnifiedModel,
    examples: Sequence[Example],
    config: EvaluationConfig,
    *,
    encoder: UnifiedModel | None = None,
    progress: Progress = silent,
) -> SuiteResult:
    """Without an exact judge: is a drawing nearest, of all pictures, to the one captioned so?

    Draws every example's first caption and looks the drawing up among the examples' own pictures by
    cosine in the encoder's feature space. Chance is 1 / number of pictures. It rewards what the
    encoder sees, no more: a drawing that is found is not thereby right. `encoder` as in
    `evaluate_reconstruction`.
    """
    encoder = encoder or model
    chosen = list(examples[: config.pictures])
    records: list[Generation] = []
    keys, queries = [], []
    for start, batch in in_batches(chosen, config.batch_size, progress):
        captions = [example.captions[0] for example in batch]
        drawn = _draw(model, captions, config, start)
        keys.append(encoder.features([example.image for example in batch]))
        queries.append(encoder.features(drawn))
        records += [
            Generation("caption", c, i, None, "") for c, i in zip(captions, drawn, strict=True)
        ]
    if not records:
        return SuiteResult([], [])
    ranks = retrieval_ranks(np.concatenate(queries), np.concatenate(keys))
    records = [
        dataclasses.replace(record, reason=f"retrieved at rank {rank + 1} of {len(ranks)}")
        for record, rank in zip(records, ranks, strict=True)
    ]
    found = [bool(rank == 0) for rank in ranks]
    return SuiteResult([proportion("generation/retrieval", found, 1 / len(found))], list(records))


def _category(item: Prompt | Generation) -> str:
    return item.category


def _draw(
    model: UnifiedModel, prompts: Sequence[str], config: EvaluationConfig, start: int
) -> list[Picture]:
    drawings = model.draw(
        prompts,
        size=(config.image_size, config.image_size),
        think=config.think,
        **config.drawing,
        seed=config.seed,
        first=start,
    )
    return [np.asarray(drawing.image) for drawing in drawings]


def _blind(prompts: Sequence[Prompt]) -> float:
    """How often the next prompt's right picture satisfies a prompt."""
    others = [*prompts[1:], prompts[0]]
    accepted = [p.judge(o.reference)[0] for p, o in zip(prompts, others, strict=True)]
    return sum(accepted) / len(accepted)
