"""One evaluation: all suites on a model and on its untrained twin, scores and records on disk."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import rich.console
import rich.progress

from unicom_jax.evaluation.data import EvaluationData
from unicom_jax.evaluation.editing import evaluate_editing
from unicom_jax.evaluation.generation import evaluate_generation, evaluate_retrieval
from unicom_jax.evaluation.protocol import UnifiedModel
from unicom_jax.evaluation.reconstruction import evaluate_reconstruction
from unicom_jax.evaluation.records import write_records
from unicom_jax.evaluation.scenes import scenes_data
from unicom_jax.evaluation.scores import flatten, write_scores
from unicom_jax.evaluation.suite import EvaluationConfig, Progress, SuiteResult, first_of_each
from unicom_jax.evaluation.understanding import evaluate_answers, evaluate_captions

SCORES_FILE = "scores.json"
RECORDS_FOLDER = "evaluation"

Suite = Callable[[UnifiedModel, Progress], SuiteResult]


def evaluate(
    generator: UnifiedModel,
    untrained_generator: UnifiedModel | None,
    config: EvaluationConfig,
    workdir: str | os.PathLike[str],
    *,
    data: EvaluationData | None = None,
    console: rich.console.Console | None = None,
) -> dict[str, float | int | None]:
    """Runs every suite, writes `scores.json` and `evaluation/`, and returns the flat scores.

    Args:
      generator: the trained model.
      untrained_generator: the same model with fresh weights, scored in the same way; None leaves
        the `.untrained` numbers null.
      config: how much is evaluated and how the model samples.
      workdir: the run's folder; made when missing.
      data: what to evaluate on; held-out Scenes of `config.image_size` by default.
      console: where progress is shown.

    Raises ValueError when there is nothing to evaluate.
    """
    data = data or scenes_data(config)
    suites = plan_suites(data, config, encoder=generator)
    if not suites:
        raise ValueError(
            "evaluation: no examples and no prompts; give data or raise the sample counts"
        )
    results = _run("trained", suites, generator, console)
    blind = _run("untrained", suites, untrained_generator, console) if untrained_generator else {}
    flat = flatten(_scores(results), _scores(blind))
    workdir = Path(workdir)
    records = {
        name: first_of_each(result.records, _kind, config.shown) for name, result in results.items()
    }
    write_records(workdir / RECORDS_FOLDER, records)
    write_scores(workdir / SCORES_FILE, flat)
    return flat


def plan_suites(
    data: EvaluationData, config: EvaluationConfig, *, encoder: UnifiedModel
) -> dict[str, tuple[Suite, int]]:
    """The suites that the data and the configuration ask for: records name -> (suite, samples)."""
    pictures = [example.image for example in data.examples[: config.pictures]]
    prompts = first_of_each(data.prompts, lambda prompt: prompt.category, config.prompts)
    kinds = collections.Counter(q.kind for example in data.examples for q in example.questions)
    edits = sum(len(example.edits) for example in data.examples)

    def reconstruct(model: UnifiedModel, progress: Progress) -> SuiteResult:
        return evaluate_reconstruction(model, pictures, config, encoder=encoder, progress=progress)

    def draw(model: UnifiedModel, progress: Progress) -> SuiteResult:
        if data.prompts:
            return evaluate_generation(model, prompts, config, progress=progress)
        return evaluate_retrieval(model, data.examples, config, encoder=encoder, progress=progress)

    def answer(model: UnifiedModel, progress: Progress) -> SuiteResult:
        return evaluate_answers(model, data.examples, config, progress=progress)

    def caption(model: UnifiedModel, progress: Progress) -> SuiteResult:
        return evaluate_captions(
            model, data.examples, config, judge=data.judge_caption, progress=progress
        )

    def edit(model: UnifiedModel, progress: Progress) -> SuiteResult:
        return evaluate_editing(
            model, data.examples, config, judge=data.judge_edit, progress=progress
        )

    retrieved = len(pictures) if config.prompts else 0
    planned = {
        "reconstructions": (reconstruct, len(pictures)),
        "generations": (draw, len(prompts) if data.prompts else retrieved),
        "answers": (answer, sum(min(n, config.questions) for n in kinds.values())),
        "captions": (caption, len(pictures)),
        "edits": (edit, min(config.edits, edits)),
    }
    return {name: plan for name, plan in planned.items() if plan[1]}


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


def _kind(record: object) -> str:
    return getattr(record, "kind", getattr(record, "category", ""))
