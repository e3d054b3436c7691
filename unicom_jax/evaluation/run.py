"""One evaluation: runs all suites on a model and on the same model untrained, and writes files."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import rich.console
import rich.progress

from data_pipelines.examples import Edit, Example, Question
from unicom_jax.core.paths import as_path
from unicom_jax.evaluation.data import EvaluationData, edits_of, questions_of
from unicom_jax.evaluation.details import evaluate_details
from unicom_jax.evaluation.editing import EDITING, evaluate_editing
from unicom_jax.evaluation.generation import (
    GENERATION,
    Prompt,
    evaluate_generation,
    evaluate_retrieval,
)
from unicom_jax.evaluation.protocol import Encoder, UnifiedModel
from unicom_jax.evaluation.reconstruction import RECONSTRUCTION, evaluate_reconstruction
from unicom_jax.evaluation.records import write_records
from unicom_jax.evaluation.scenes import scenes_data
from unicom_jax.evaluation.scores import OF_FEATURES, flatten, write_scores
from unicom_jax.evaluation.suite import (
    EvaluationConfig,
    Makes,
    Progress,
    SuiteResult,
    first_of_each,
)
from unicom_jax.evaluation.understanding import (
    ANSWERS,
    CAPTIONS,
    evaluate_answers,
    evaluate_captions,
)
from unicom_jax.evaluation.unified import REDRAWING, evaluate_unified

SCORES_FILE = "scores.json"
RECORDS_FOLDER = "evaluation"
UNIFIED = "unified"  # a suite that runs only on request
SUITES: dict[str, Makes] = {
    "reconstructions": RECONSTRUCTION,
    "generations": GENERATION,
    "answers": ANSWERS,
    "captions": CAPTIONS,
    "edits": EDITING,
    UNIFIED: REDRAWING,
}

Suite = Callable[[UnifiedModel, Progress], SuiteResult]


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples on which both models are scored. Questions and edits are read when used."""

    pictures: int
    prompts: Sequence[Prompt]
    questions: Sequence[tuple[Example, Question]]
    edits: Sequence[tuple[Example, Edit]]


def evaluate(
    load: Callable[[], UnifiedModel],
    load_untrained: Callable[[], UnifiedModel] | None,
    config: EvaluationConfig,
    workdir: str | os.PathLike[str],
    *,
    data: EvaluationData | None = None,
    only: Collection[str] | None = None,
    about: Mapping[str, Any] | None = None,
    console: rich.console.Console | None = None,
) -> dict[str, float | int | None]:
    """Runs every suite, writes `scores.json` and `evaluation/`, and returns the flat scores.

    The two models are in memory one after the other, except for the encoder of the trained one,
    which measures features of both models' pictures. If it has none, scores that need one are left
    out, and named on the console.

    Args:
      load: returns the trained model.
      load_untrained: returns the same model with fresh weights, which is scored in the same way;
        None leaves the `.untrained` numbers null.
      config: how much is evaluated and how the model samples.
      workdir: the run's folder; created if missing.
      data: what to evaluate on; by default Scenes of `config.image_size`, the test split.
      only: names of `SUITES`; None: all that have samples, except `UNIFIED`.
      about: facts about the scores for `scores.json`, in addition to the settings.
      console: where progress is shown.

    Raises ValueError when there is nothing to evaluate.
    """
    data = data or scenes_data(config)
    samples = choose_samples(data, config)
    if not any((samples.pictures, samples.prompts, samples.questions, samples.edits)):
        raise ValueError(
            "evaluation: no examples and no prompts; give data or raise the sample counts"
        )
    model = load()
    encoder = model.encoder
    left_out = () if encoder else measured_scores(samples, data, config, only)
    if left_out and console:
        console.print(f"no encoder was trained or imported; left out: {', '.join(left_out)}")
    suites = suites_of(samples, data, config, encoder, only)
    if not suites:
        raise ValueError(
            f"evaluation: no samples for {', '.join(only or ())}; raise the sample counts"
        )
    _check_best_of(config, suites, data)
    if config.shown and "generations" in suites and model.without_details is not None:
        suites |= details_of(samples, data, config)
    results = _run("trained", suites, model, console)
    seen = _about_pictures(model, data.examples, samples.pictures)
    del model  # two may not fit into memory
    blind: dict[str, SuiteResult] = {}
    if load_untrained is not None:
        without_pictures = dataclasses.replace(config, shown=0)
        suites = suites_of(samples, data, without_pictures, encoder, only)
        blind = _run("untrained", suites, load_untrained(), console)
    flat = flatten(_scores(results), _scores(blind))
    judge = "the exact judge of the data" if data.prompts else "retrieval among the true pictures"
    measured = encoder.fingerprint if encoder else None
    facts = {**(about or {}), **seen, "measured_by": measured, "judge": judge, **_settings(config)}
    facts["left_out"] = list(left_out)
    write_records(as_path(workdir) / RECORDS_FOLDER, _records(results), _records(blind))
    write_scores(as_path(workdir) / SCORES_FILE, flat, facts)
    return flat


def suite_of(score: str) -> str | None:
    """The suite that makes a score; None if none does."""
    return next((name for name, made in SUITES.items() if re.fullmatch(made.names, score)), None)


def choose_samples(data: EvaluationData, config: EvaluationConfig) -> Samples:
    """The samples that the configuration requests. Goes through the examples once or twice."""
    return Samples(
        pictures=min(config.pictures, len(data.examples)),
        prompts=first_of_each(data.prompts, lambda prompt: prompt.category, config.prompts),
        questions=questions_of(data.examples, config.questions),
        edits=edits_of(data.examples, config.edits),
    )


def _check_best_of(
    config: EvaluationConfig, suites: Mapping[str, Suite], data: EvaluationData
) -> None:
    """Raises ValueError if there is nothing to choose from, or nobody who could choose."""
    flag = f"--best-of={config.best_of}"
    if config.best_of > 1 and not suites.keys() & {"generations", UNIFIED}:
        raise ValueError(
            f"{flag}: none of the suites draws several times; add --suite=generations or "
            "--suite=unified, or leave the flag out"
        )
    if config.best_of > 1 and "generations" in suites and not data.prompts:
        raise ValueError(
            f"{flag}: generations of this data have no exact judge that could choose; add "
            "--suite=unified"
        )


def suites_of(
    samples: Samples,
    data: EvaluationData,
    config: EvaluationConfig,
    encoder: Encoder | None,
    only: Collection[str] | None = None,
) -> dict[str, tuple[Suite, int]]:
    """The suites that have samples: name of the records -> (suite, number of samples).

    `only`: restricts the result to these.
    """

    def reconstruct(model: UnifiedModel, progress: Progress) -> SuiteResult:
        judge = data.judge_drawing
        return evaluate_reconstruction(
            model, data.examples, config, encoder=encoder, judge=judge, progress=progress
        )

    def draw(model: UnifiedModel, progress: Progress) -> SuiteResult:
        if data.prompts:
            return evaluate_generation(model, samples.prompts, config, progress=progress)
        return evaluate_retrieval(model, data.examples, config, encoder=encoder, progress=progress)

    def answer(model: UnifiedModel, progress: Progress) -> SuiteResult:
        return evaluate_answers(model, samples.questions, config, progress=progress)

    def caption(model: UnifiedModel, progress: Progress) -> SuiteResult:
        return evaluate_captions(
            model, data.examples, config, judge=data.judge_caption, progress=progress
        )

    def edit(model: UnifiedModel, progress: Progress) -> SuiteResult:
        return evaluate_editing(
            model, samples.edits, config, judge=data.judge_edit, progress=progress
        )

    retrieved = samples.pictures if config.prompts and encoder else 0

    def redraw(model: UnifiedModel, progress: Progress) -> SuiteResult:
        return evaluate_unified(
            model,
            data.examples,
            config,
            encoder=encoder,
            judge=data.judge_drawing,
            judge_words=data.judge_facts,
            progress=progress,
        )

    planned = {
        "reconstructions": (reconstruct, samples.pictures),
        "generations": (draw, len(samples.prompts) if data.prompts else retrieved),
        "answers": (answer, len(samples.questions)),
        "captions": (caption, samples.pictures),
        "edits": (edit, len(samples.edits)),
        UNIFIED: (redraw, samples.pictures),
    }
    wanted = planned.keys() - {UNIFIED} if only is None else only
    return {name: plan for name, plan in planned.items() if plan[1] and name in wanted}


def details_of(
    samples: Samples, data: EvaluationData, config: EvaluationConfig
) -> dict[str, tuple[Suite, int]]:
    """As `suites_of`, for what the report shows about a head that adds details."""

    def draw(model: UnifiedModel, progress: Progress) -> SuiteResult:
        return evaluate_details(model, samples.prompts, data.examples, config, progress=progress)

    return {"details": (draw, min(config.shown, len(samples.prompts) or len(data.examples)))}


def measured_scores(
    samples: Samples,
    data: EvaluationData,
    config: EvaluationConfig,
    only: Collection[str] | None = None,
) -> tuple[str, ...]:
    """The scores that an encoder measures. `only` as for `suites_of`."""
    wanted = OF_FEATURES.keys() - {UNIFIED} if only is None else set(only)
    if data.prompts or not config.prompts:
        wanted -= {"generations"}  # the exact judge scores them, or there are none
    found = (names for suite, names in OF_FEATURES.items() if suite in wanted)
    return tuple(itertools.chain(*found)) if samples.pictures else ()


def _run(
    label: str,
    suites: Mapping[str, tuple[Suite, int]],
    model: UnifiedModel,
    console: rich.console.Console | None,
) -> dict[str, SuiteResult]:
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    results = {}
    with rich.progress.Progress(*columns, console=console) as display:
        for name, (suite, samples) in suites.items():
            task = display.add_task(f"{label}: {name}", total=samples)
            results[name] = suite(model, lambda done, task=task: display.advance(task, done))
    return results


def _scores(results: Mapping[str, SuiteResult]) -> list:
    return [score for result in results.values() for score in result.scores]


def _records(results: Mapping[str, SuiteResult]) -> dict[str, Sequence]:
    return {name: result.records for name, result in results.items()}


def _about_pictures(model: UnifiedModel, examples: Sequence[Example], count: int) -> dict[str, Any]:
    """Facts about the pictures.

    "shapes": the number of pictures in each shape in which the model saw them, "height x width".
    "pictures": a hash of their keys and first captions, which tells whether another run was scored
    on the same ones; None: there are none.
    """
    shapes: collections.Counter = collections.Counter()
    digest = hashlib.sha256()
    for example in (examples[index] for index in range(count)):
        shapes["{} x {}".format(*model.prepared(example.image).shape[:2])] += 1
        digest.update(json.dumps([example.key, *example.captions[:1]]).encode())
    pictures = digest.hexdigest()[:16] if count else None
    return {"shapes": dict(shapes.most_common()), "pictures": pictures}


def _settings(config: EvaluationConfig) -> dict[str, Any]:
    """How the model sampled and how its answers were compared."""
    names = ("think", "seed", "answer_rule")
    chosen = {"best_of": config.best_of} if config.best_of > 1 else {}
    return {**config.editing, **{name: getattr(config, name) for name in names}, **chosen}
