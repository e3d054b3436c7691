"""Suite: a picture is described, its description is drawn, and the drawing is compared with it.

"Unified-Bench" (UAE, arXiv 2509.09666): the score is high only where understanding and drawing
agree. It is measured on three descriptions of the same pictures, drawn from the same noise:

    unified/NAME                  the model's own
    unified/NAME/true caption     the data's most detailed one: what drawing alone could reach
    chance, and unified/NAME/shuffled   the model's description of the next picture

Where a judge can read descriptions, `caption_kept` and `caption_invented` also compare each of them
with the facts of the picture, without drawing it.

With `config.best_of` above 1, each description is drawn so many times, and the drawing that agrees
best with the picture counts: by the judge, or by the cosine where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from data_pipelines.examples import Example
from data_pipelines.scenes.agreement import Agreement
from data_pipelines.sequences.tasks import IN_DETAIL
from unicom_jax.core.picture import Picture
from unicom_jax.evaluation.generation import draw_turns, shape_of
from unicom_jax.evaluation.intervals import mean_interval
from unicom_jax.evaluation.protocol import Encoder, UnifiedModel
from unicom_jax.evaluation.records import Log, Redrawing
from unicom_jax.evaluation.scores import Score
from unicom_jax.evaluation.suite import (
    EvaluationConfig,
    Makes,
    Progress,
    SuiteResult,
    in_batches,
    in_batches_of_one_shape,
    silent,
)

REDRAWING = Makes(
    r"unified/(cosine|agreement|(caption_)?(kept|invented))(/true caption|/shuffled)?", "pictures"
)
# Facts of the first picture that the second one kept or lost, and those that it invented.
PictureJudge = Callable[[Picture, Picture], Agreement]
# The same of a text and the picture of an example.
FactsJudge = Callable[[str, Example], Agreement]
OWN, TRUE, SHUFFLED = "", "true caption", "shuffled"
RECORDED = ("cosine", "agreement", "caption_kept", "caption_invented")  # fields of `Redrawing`


def evaluate_unified(
    model: UnifiedModel,
    examples: Sequence[Example],
    config: EvaluationConfig,
    *,
    encoder: Encoder | None = None,
    judge: PictureJudge | None = None,
    judge_words: FactsJudge | None = None,
    progress: Progress = silent,
) -> SuiteResult:
    """Scores the first `config.pictures` examples.

    cosine: that of the encoder's pooled features of both pictures (`encoder` as in
    `evaluate_reconstruction`). With a `judge` also agreement: facts kept over all that were kept,
    lost or invented; kept: over the true ones; invented: over those of the drawing. With
    `judge_words` also caption_kept and caption_invented: the same two of the descriptions.
    """
    count = min(config.pictures, len(examples))
    if not count or (encoder is None and judge is None):
        return SuiteResult([], [])
    chosen = [examples[index] for index in range(count)]
    said = _captions(model, chosen, config)
    captions = {
        OWN: said,
        TRUE: [example.captions[-1] for example in chosen],
        SHUFFLED: [*said[1:], said[0]],
    }
    shapes = [shape_of(model, example.image) for example in chosen]
    marks: dict[str, dict[str, list[float]]] = {kind: {} for kind in captions}
    records: Log[Redrawing] = Log(config.shown)
    batches = in_batches_of_one_shape(chosen, shapes, config.batch_size, progress)
    for first, shape, batch in batches:
        originals = [model.prepared(example.image) for _, example in batch]
        drawn, found = {}, {}
        for kind, texts in captions.items():
            asked = [texts[index] for index, _ in batch]
            turns = draw_turns(model, asked, shape, config, first)
            judged = [_marks(originals, one, encoder, judge) for one in turns]
            drawn[kind], found[kind] = _best(turns, judged)
            found[kind] |= _marks_of_words(asked, [one for _, one in batch], judge_words)
            for name, values in found[kind].items():
                marks[kind].setdefault(name, []).extend(values)
        for row, (index, example) in enumerate(batch):
            own = {name: values[row] for name, values in found[OWN].items()}
            records.append(
                Redrawing(
                    key=example.key,
                    original=originals[row],
                    caption=said[index],
                    drawing=drawn[OWN][row],
                    true_caption=captions[TRUE][index],
                    true_drawing=drawn[TRUE][row],
                    **{name: own.get(name) for name in RECORDED},
                )
            )
    return SuiteResult(_scores(marks), records)


def _captions(
    model: UnifiedModel, chosen: Sequence[Example], config: EvaluationConfig
) -> list[str]:
    """The model's detailed description of each picture, written greedily."""
    said = []
    for first, batch in in_batches(chosen, config.batch_size):
        said += model.answer(
            [example.image for example in batch],
            [IN_DETAIL] * len(batch),
            max_tokens=config.max_tokens,
            temperature=0.0,
            seed=config.seed,
            first=first,
        )
    return said


def _marks(
    originals: Sequence[Picture],
    drawings: Sequence[Picture],
    encoder: Encoder | None,
    judge: PictureJudge | None,
) -> dict[str, list[float]]:
    """One number per picture, by measure."""
    found: dict[str, list[float]] = {}
    if encoder is not None:
        pairs = (encoder.features(one) for one in (originals, drawings))
        found["cosine"] = _cosines(*pairs).tolist()
    if judge is not None:
        told = [judge(*pair) for pair in zip(originals, drawings, strict=True)]
        found["agreement"] = [one.score for one in told]
        found["kept"] = [one.completeness for one in told]
        found["invented"] = [one.wrong for one in told]
    return found


def _marks_of_words(
    texts: Sequence[str], examples: Sequence[Example], judge: FactsJudge | None
) -> dict[str, list[float]]:
    """As `_marks`, for descriptions of the examples' pictures."""
    if judge is None:
        return {}
    found = [judge(text, example) for text, example in zip(texts, examples, strict=True)]
    return {
        "caption_kept": [one.completeness for one in found],
        "caption_invented": [one.wrong for one in found],
    }


def _best(
    turns: Sequence[Sequence[Picture]], marks: Sequence[dict[str, list[float]]]
) -> tuple[list[Picture], dict[str, list[float]]]:
    """The best drawing of each picture and its marks, from the drawings and marks of each turn."""
    by = "agreement" if "agreement" in marks[0] else "cosine"
    chosen = np.argmax([one[by] for one in marks], axis=0)
    best = {name: [marks[k][name][row] for row, k in enumerate(chosen)] for name in marks[0]}
    return [turns[k][row] for row, k in enumerate(chosen)], best


def _cosines(
    one: Float[np.ndarray, "B F"], other: Float[np.ndarray, "B F"]
) -> Float[np.ndarray, " B"]:
    one, other = (np.asarray(x, np.float64) for x in (one, other))
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return (one * other).sum(-1) / np.maximum(norms, 1e-12)


def _scores(marks: dict[str, dict[str, list[float]]]) -> list[Score]:
    """The scores, the model's own first, each with the mean of shuffled captions as its chance."""
    scores = []
    for kind, found in marks.items():
        for name, values in found.items():
            bounds = (-1.0, 1.0) if name == "cosine" else (0.0, 1.0)
            chance = None if kind == SHUFFLED else float(np.mean(marks[SHUFFLED][name]))
            label = "/".join(filter(None, ("unified", name, kind)))
            scores.append(Score(label, mean_interval(values, bounds=bounds), len(values), chance))
    return scores
