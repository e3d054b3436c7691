"""Suite: pictures drawn from prompts, judged by category or retrieved by the encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.examples import Example
from unicom_jax.core.picture import Picture
from unicom_jax.evaluation.intervals import mean_of_proportions
from unicom_jax.evaluation.kernel_distance import kernel_distance
from unicom_jax.evaluation.metrics import retrieval_ranks
from unicom_jax.evaluation.protocol import Encoder, UnifiedModel
from unicom_jax.evaluation.records import Generation, Log
from unicom_jax.evaluation.scores import Score, proportion
from unicom_jax.evaluation.suite import (
    EvaluationConfig,
    Makes,
    Progress,
    SuiteResult,
    by_kind,
    in_batches_of_one_shape,
    silent,
)

GENERATION = Makes(r"generation/.+", "prompts")  # categories are those of the data
TURN = 7_919  # between the seeds of the drawings of one prompt
Verdict = tuple[bool, str]  # correct, and why not ("" when it is)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt of a category, with the judge of its pictures.

    `reference` makes a correct picture, whose shape drawings get.
    """

    category: str
    text: str
    judge: Callable[[Picture], Verdict]
    reference: Callable[[], Picture]


def evaluate_generation(
    model: UnifiedModel,
    prompts: Sequence[Prompt],
    config: EvaluationConfig,
    *,
    progress: Progress = silent,
) -> SuiteResult:
    """Share of pictures that their prompt's judge accepts, by category, and the categories' mean.

    The categories are GenEval's (Ghosh et al. 2023). Chance is a model that draws perfectly but
    ignores its prompt: each prompt is judged on the correct picture of its category's next prompt.
    With `config.best_of` above 1, a prompt counts as correct if one of so many drawings is.
    """
    if not prompts:
        return SuiteResult([], [])
    shapes = [shape_of(model, prompt.reference()) for prompt in prompts]
    records: Log[Generation] = Log(config.shown)
    outcomes: dict[str, list[bool]] = {prompt.category: [] for prompt in prompts}
    batches = in_batches_of_one_shape(prompts, shapes, config.batch_size, progress)
    for first, shape, batch in batches:
        drawn = draw_turns(model, [prompt.text for _, prompt in batch], shape, config, first)
        for (index, prompt), images in zip(batch, zip(*drawn, strict=True), strict=True):
            image, correct, reason = _best(prompt, images)
            outcomes[prompt.category].append(correct)
            key = f"prompt/{index}"
            records.append(Generation(key, prompt.category, prompt.text, image, correct, reason))
    blind = {kind: _blind(group) for kind, group in by_kind(prompts, _category).items()}
    scores = [
        proportion(f"generation/{kind}", correct, blind[kind]) for kind, correct in outcomes.items()
    ]
    overall = Score(
        "generation/overall",
        mean_of_proportions([score.interval for score in scores]),
        len(records),
        None if None in blind.values() else sum(blind.values()) / len(blind),
    )
    return SuiteResult([*scores, overall], records)


def evaluate_retrieval(
    model: UnifiedModel,
    examples: Sequence[Example],
    config: EvaluationConfig,
    *,
    encoder: Encoder,
    progress: Progress = silent,
) -> SuiteResult:
    """Without an exact judge: how often is a drawing closest to the picture with its caption?

    Draws the first captions of `config.pictures` examples, each in the shape of its picture, and
    finds the picture nearest to each drawing by cosine in the encoder's feature space. Chance is
    1 / number of pictures. The score rewards only what the encoder sees: a drawing that is matched
    is not necessarily correct. The kernel distance (KID) compares the drawings with the pictures as
    two sets. `encoder` as in `evaluate_reconstruction`.
    """
    chosen = range(min(config.pictures, len(examples)))
    if not chosen:
        return SuiteResult([], [])
    shapes = [shape_of(model, examples[index].image) for index in chosen]
    records: Log[Generation] = Log(config.shown)
    keys, queries = [], []
    batches = in_batches_of_one_shape(chosen, shapes, config.batch_size, progress)
    for first, shape, batch in batches:
        true = [examples[index] for index, _ in batch]
        drawn = draw_all(model, [example.captions[0] for example in true], shape, config, first)
        keys.append(encoder.features([example.image for example in true]))
        queries.append(encoder.features(drawn))
        for example, image in zip(true, drawn, strict=True):
            caption = example.captions[0]
            records.append(Generation(example.key, "caption", caption, image, None, ""))
    drawn_features, true_features = np.concatenate(queries), np.concatenate(keys)
    ranks = retrieval_ranks(drawn_features, true_features)
    for index, rank in enumerate(ranks):
        reason = f"retrieved at rank {rank + 1} of {len(ranks)}"
        records[index] = dataclasses.replace(records[index], reason=reason)
    found = [bool(rank == 0) for rank in ranks]
    distance = kernel_distance(true_features, drawn_features)
    scores = [
        proportion("generation/retrieval", found, 1 / len(found)),
        Score("generation/kid", distance, len(found)),
    ]
    return SuiteResult(scores, records)


def _best(prompt: Prompt, images: Sequence[Picture]) -> tuple[Picture, bool, str]:
    """The first correct one of several drawings, else the first one, with its verdict."""
    judged = [(image, *prompt.judge(image)) for image in images]
    return max(judged, key=lambda one: one[1])


def _category(prompt: Prompt) -> str:
    return prompt.category


def shape_of(model: UnifiedModel, picture: Picture) -> tuple[int, int]:
    """The height and width of a drawing that is to have the shape of this picture."""
    height, width, _ = model.prepared(picture).shape
    return height, width


def draw_all(
    model: UnifiedModel,
    prompts: Sequence[str],
    shape: tuple[int, int],
    config: EvaluationConfig,
    first: int,
    turn: int = 0,
) -> list[Picture]:
    """Draws pictures of one shape; `first` as for `UnifiedModel.draw`. Every `turn` has other
    noise."""
    seed = (config.seed + TURN * turn) % 2**31
    options = {**config.drawing, "think": config.think, "seed": seed, "first": first}
    drawings = model.draw(prompts, size=shape, **options)
    return [np.asarray(drawing.image) for drawing in drawings]


def draw_turns(
    model: UnifiedModel,
    prompts: Sequence[str],
    shape: tuple[int, int],
    config: EvaluationConfig,
    first: int,
) -> list[list[Picture]]:
    """`draw_all`, `config.best_of` times."""
    return [draw_all(model, prompts, shape, config, first, k) for k in range(config.best_of)]


def _blind(prompts: Sequence[Prompt]) -> float | None:
    """How often the next prompt's correct picture satisfies a prompt; None for a single prompt."""
    if len(prompts) == 1:
        return None
    others = [*prompts[1:], prompts[0]]
    accepted = [p.judge(o.reference())[0] for p, o in zip(prompts, others, strict=True)]
    return sum(accepted) / len(accepted)
