"""Suite: questions about pictures, and captions."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

from data_pipelines.examples import Example
from unicom_jax.evaluation.intervals import mean_interval
from unicom_jax.evaluation.metrics import exact_match, normalise, token_f1
from unicom_jax.evaluation.protocol import UnifiedModel
from unicom_jax.evaluation.records import Answer, Caption
from unicom_jax.evaluation.scores import Score, proportion
from unicom_jax.evaluation.suite import (
    EvaluationConfig,
    Progress,
    SuiteResult,
    by_kind,
    first_of_each,
    in_batches,
    silent,
)

# Whether a caption in words of its own is true of an example's picture.
CaptionJudge = Callable[[str, Example], bool]


def evaluate_answers(
    model: UnifiedModel,
    examples: Sequence[Example],
    config: EvaluationConfig,
    *,
    progress: Progress = silent,
) -> SuiteResult:
    """Exact match of greedy answers, overall and by kind of question.

    Case and punctuation do not count. Chance is somebody who sees the kind of question but not the
    picture and always gives that kind's commonest answer in this sample; no blind guess is better.
    """
    pairs = [(example.image, q) for example in examples for q in example.questions]
    pairs = first_of_each(pairs, lambda pair: pair[1].kind, config.questions)
    records: list[Answer] = []
    for start, batch in in_batches(pairs, config.batch_size, progress):
        images, questions = [image for image, _ in batch], [q.question for _, q in batch]
        predictions = model.answer(
            images,
            questions,
            max_tokens=config.max_tokens,
            temperature=0.0,
            seed=config.seed,
            first=start,
        )
        for (image, q), text in zip(batch, predictions, strict=True):
            correct = exact_match(text, (q.answer,))
            records.append(Answer(q.kind, image, q.question, q.answer, text, correct))
    if not records:
        return SuiteResult([], [])
    groups = by_kind(records, lambda record: record.kind)
    commonest = {kind: _commonest([r.answer for r in group]) for kind, group in groups.items()}
    everything = proportion(
        "understanding/qa", [r.correct for r in records], sum(commonest.values()) / len(records)
    )
    each = [
        proportion(
            f"understanding/qa/{kind}", [r.correct for r in group], commonest[kind] / len(group)
        )
        for kind, group in sorted(groups.items())
    ]
    return SuiteResult([everything, *each], list(records))


def evaluate_captions(
    model: UnifiedModel,
    examples: Sequence[Example],
    config: EvaluationConfig,
    *,
    judge: CaptionJudge | None = None,
    progress: Progress = silent,
) -> SuiteResult:
    """Exact match of greedy captions with any of the true ones, and the F1 of their words.

    With a `judge`, a caption in other words that it finds true of the picture is correct as well;
    without one, only the stored captions are. Chance is the commonest caption of the sample, said
    of every picture.
    """
    chosen = list(examples[: config.pictures])

    def correct(text: str, example: Example) -> bool:
        return exact_match(text, example.captions) or (judge is not None and judge(text, example))

    predictions: list[str] = []
    for start, batch in in_batches(chosen, config.batch_size, progress):
        predictions += model.caption(
            [example.image for example in batch],
            max_tokens=config.max_tokens,
            temperature=0.0,
            seed=config.seed,
            first=start,
        )
    if not chosen:
        return SuiteResult([], [])
    records = [
        Caption(example.image, example.captions[0], text, correct(text, example))
        for example, text in zip(chosen, predictions, strict=True)
    ]
    blind = collections.Counter(record.caption for record in records).most_common(1)[0][0]
    chance = sum(correct(blind, example) for example in chosen) / len(chosen)
    exact = proportion("understanding/caption", [r.correct for r in records], chance)
    overlaps = [token_f1(t, e.captions) for t, e in zip(predictions, chosen, strict=True)]
    blind_overlap = sum(token_f1(blind, e.captions) for e in chosen) / len(chosen)
    overlap = Score("understanding/caption_f1", mean_interval(overlaps), len(chosen), blind_overlap)
    return SuiteResult([exact, overlap], list(records))


def _commonest(answers: Sequence[str]) -> int:
    return collections.Counter(map(normalise, answers)).most_common(1)[0][1]
