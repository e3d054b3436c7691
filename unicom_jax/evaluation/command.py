"""`unicom evaluate`: from a run's folder to its scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipelines.build import (
    evaluates_on_training_data,
    grid_unit,
    image_policy,
    open_examples,
)
from data_pipelines.faults import SourceError
from data_pipelines.scenes.scene import SceneConfig
from data_pipelines.sources.configured import source_kinds
from data_pipelines.sources.split import EVALUATION
from unicom_jax.evaluation.data import TEST, EvaluationData, complete, half_of, sample_of
from unicom_jax.evaluation.run import SCORES_FILE, evaluate
from unicom_jax.evaluation.scenes import scenes_data
from unicom_jax.evaluation.scores import print_scores
from unicom_jax.evaluation.suite import FEWEST, EvaluationConfig
from unicom_jax.inference.generator import Generator
from unicom_jax.runs.data import source_changes
from unicom_jax.runs.weights import describe, steps_in_use


def run_evaluate(
    workdir: Path,
    console: Console,
    *,
    step: str = "",
    split: str = TEST,
    baseline: bool = True,
) -> dict[str, float | int | None]:
    """Scores the weights of a run, then the same model untrained; prints the table.

    Args:
      step: of the unified model, as for `Generator.load`.
      split: development or test.
      baseline: whether the untrained model is scored, too.

    Raises CheckpointError without a checkpoint, SourceError without the data.
    """
    config, tokenizer, _ = describe(workdir)
    used = steps_in_use(workdir, step)
    settings = EvaluationConfig.of(config)
    trained_on = evaluates_on_training_data(config)
    if trained_on:
        console.print(
            "nothing was held out of a source (held_out, eval_split): "
            "these are scores on training data"
        )
    changed = source_changes(config, workdir)
    if changed:
        console.print(
            f"the data changed since training: {'; '.join(changed)}; records are held out by their "
            "place, so some that are scored may have been trained on",
            markup=False,
        )
    about = {
        "split": split,
        "data": ", ".join(source_kinds(config)),
        "trained_on": trained_on,
        "data_changed": changed,
        "policy": config["data"]["policy"],
        "checkpoints": {part: f"{stage} {number}" for part, (stage, number) in used.items()},
    }
    flat = evaluate(
        lambda: Generator.load(workdir, step),
        (lambda: Generator.untrained(config, tokenizer)) if baseline else None,
        settings,
        workdir,
        data=data_of(config, settings, split),
        encoder_of=encoder_of,
        about=about,
        console=console,
    )
    print_scores(flat, console)
    console.print(
        f"scores on the {split} split: {workdir / SCORES_FILE}", markup=False, soft_wrap=True
    )
    return flat


def encoder_of(generator: Generator) -> Generator:
    """A generator that holds the weights of the encoder alone, for `features`."""
    vision = {"vision": generator.params["vision"]}
    return Generator(generator.config, generator.tokenizer, vision, generator.models.mesh)


def data_of(
    run: Mapping[str, Any], settings: EvaluationConfig, split: str = TEST
) -> EvaluationData:
    """The evaluation data of a run's configuration: Scenes alone with the exact judge, others
    without.

    Pictures keep the shapes that they have in training under the run's image policy.

    Raises SourceError when a split has too few records.
    """
    if source_kinds(run) == ["scenes"]:
        fields = run["data"]["scenes"].items()  # JSON knows lists only
        fields = {key: tuple(v) if isinstance(v, list) else v for key, v in fields}
        policy, unit = image_policy(run), run["data"]["patch"] * grid_unit(run)
        sizes = [policy.target_size(*size, unit) for size in fields["sizes"]]
        scenes = SceneConfig(**fields)
        return scenes_data(settings, scenes, sizes=tuple(dict.fromkeys(sizes)), split=split)
    source = complete(open_examples(run, EVALUATION, with_edits=settings.edits > 0))
    examples = sample_of(half_of(source, split), settings.examples)
    if settings.pictures and len(examples) < FEWEST:
        raise SourceError(
            f"the {split} half of {len(source)} held-out records has {len(examples)}, too few for "
            f"intervals; hold out more (data.source.held_out), at least {FEWEST} a half"
        )
    return EvaluationData(examples)
