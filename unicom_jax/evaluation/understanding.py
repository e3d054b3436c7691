"""Suite: questions about pictures, and captions."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

from data_pipelines.examples import Example, Question
from unicom_jax.evaluation.answers import RULES, Rule, exact, normalise, token_f1
from unicom_jax.evaluation.protocol import UnifiedModel
from unicom_jax.evaluation.records import Answer, Caption, Log
from unicom_jax.evaluation.scores import Score, graded, proportion
from unicom_jax.evaluation.suite import (
    EvaluationConfig,
    Makes,
    Progress,
    SuiteResult,
    by_kind,
    in_batches,
    silent,
)

ANSWERS = Makes(r"understanding/qa(/.+)?", "questions")  # kinds are those of the data
CAPTIONS = Makes(r"understanding/caption(_f1)?", "pictures")
# Whether a freely worded caption is true of an example's picture.
CaptionJudge = Callable[[str, Example], bool]


def evaluate_answers(
    model: UnifiedModel,
    questions: Sequence[tuple[Example, Question]],
    config: EvaluationConfig,
    *,
    progress: Progress = silent,
) -> SuiteResult:
    """Greedy answers compared by `config.answer_rule`, overall and by kind of question.

    The questions of one picture are a cluster. Chance is the score of always giving the sample's
    most common answer to this kind of question.
    """
    rule = RULES[config.answer_rule]
    records: Log[Answer] = Log(config.shown)
    for first, batch in in_batches(questions, config.batch_size, progress):
        predictions = model.answer(
            [example.image for example, _ in batch],
            [question.question for _, question in batch],
            max_tokens=config.max_tokens,
            temperature=0.0,
            seed=config.seed,
            first=first,
        )
        for (example, q), text in zip(batch, predictions, strict=True):
            mark = rule(text, (q.answer,))
            records.append(
                Answer(
                    key=example.key,
                    kind=q.kind,
                    image=example.image,
                    question=q.question,
                    answer=q.answer,
                    prediction=text,
                    score=mark,
                    correct=mark >= 0.5,
                )
            )
    if not records:
        return SuiteResult([], [])
    groups = by_kind(records, lambda record: record.kind)
    blind = {kind: _commonest([r.answer for r in group], rule) for kind, group in groups.items()}
    chance = sum(blind[record.kind] for record in records) / len(records)
    scores = [_score("understanding/qa", records, chance)]
    for kind, group in sorted(groups.items()):
        scores.append(_score(f"understanding/qa/{kind}", group, blind[kind]))
    return SuiteResult(scores, records)


def _score(name: str, records: Sequence[Answer], chance: float) -> Score:
    return graded(name, [r.score for r in records], chance, [r.key for r in records])


def _commonest(answers: Sequence[str], rule: Rule) -> float:
    """The mark of giving the most common answer to every question."""
    common = collections.Counter(map(normalise, answers)).most_common(1)[0][0]
    said = next(answer for answer in answers if normalise(answer) == common)
    return sum(rule(said, (answer,)) for answer in answers) / len(answers)


def evaluate_captions(
    model: UnifiedModel,
    examples: Sequence[Example],
    config: EvaluationConfig,
    *,
    judge: CaptionJudge | None = None,
    progress: Progress = silent,
) -> SuiteResult:
    """Exact match of greedy captions with any of the true ones, and the F1 of their words.

    With a `judge`, a caption in other words that it finds true of the picture is also correct;
    without one, only the stored captions are. Chance is giving every picture the sample's most
    common caption.
    """
    chosen = range(min(config.pictures, len(examples)))

    def correct(text: str, example: Example) -> bool:
        return exact(text, example.captions) == 1.0 or (judge is not None and judge(text, example))

    records: Log[Caption] = Log(config.shown)
    greedy = {"max_tokens": config.max_tokens, "temperature": 0.0, "seed": config.seed}
    for first, batch in in_batches(chosen, config.batch_size, progress):
        true = [examples[index] for index in batch]
        images = [example.image for example in true]
        texts = model.caption(images, **greedy, first=first)
        for example, text in zip(true, texts, strict=True):
            verdict, overlap = correct(text, example), token_f1(text, example.captions)
            caption = example.captions[0]
            records.append(Caption(example.key, example.image, caption, text, verdict, overlap))
    if not records:
        return SuiteResult([], [])
    said = collections.Counter(record.caption for record in records).most_common(1)[0][0]
    blind = [
        (correct(said, e), token_f1(said, e.captions)) for e in map(examples.__getitem__, chosen)
    ]
    chance, chance_overlap = (sum(column) / len(blind) for column in zip(*blind, strict=True))
    keys = [record.key for record in records]
    scores = [
        proportion("understanding/caption", [record.correct for record in records], chance, keys),
        graded(
            "understanding/caption_f1", [record.overlap for record in records], chance_overlap, keys
        ),
    ]
    return SuiteResult(scores, records)
