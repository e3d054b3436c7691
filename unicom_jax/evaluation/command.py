"""`unicom evaluate`: from a run's folder to its scores."""

from __future__ import annotations

import dataclasses
import functools
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
from unicom_jax.config import ConfigError
from unicom_jax.evaluation.data import TEST, EvaluationData, complete, half_of, sample_of
from unicom_jax.evaluation.run import SCORES_FILE, SUITES, evaluate
from unicom_jax.evaluation.scenes import scenes_data
from unicom_jax.evaluation.scores import print_scores
from unicom_jax.evaluation.suite import FEWEST, EvaluationConfig
from unicom_jax.inference.generator import Generator
from unicom_jax.inference.reconstructor import Reconstructor, trained_alone
from unicom_jax.runs.checkpoint import chosen_step
from unicom_jax.runs.data import source_changes
from unicom_jax.runs.trained import source_label
from unicom_jax.runs.weights import describe, steps_in_use


def run_evaluate(
    workdir: Path,
    console: Console,
    *,
    step: str = "",
    split: str = TEST,
    baseline: bool = True,
    suites: str | None = None,
    best_of: int = 1,
) -> dict[str, float | int | None]:
    """Scores the weights of a run, then the same model untrained; prints the table.

    A run that has trained no unified model, but a codec or an autoencoder, is scored on the
    reconstructions.

    Args:
      step: that of the unified model, as for `Generator.load`.
      split: development or test.
      baseline: also score the untrained model.
      suites: names of `evaluation.run.SUITES` separated by commas, or "all"; None: the default
        ones.
      best_of: as of `EvaluationConfig`.

    Raises CheckpointError without a checkpoint, SourceError without the data, ConfigError for an
    unknown suite.
    """
    only = chosen_suites(suites)
    config, tokenizer = describe(workdir)
    used = steps_in_use(workdir, step)
    if best_of < 1:
        raise ConfigError(f"--best-of={best_of}: give at least 1")
    settings = dataclasses.replace(EvaluationConfig.of(config), best_of=best_of)
    load, untrained = Generator.load, Generator.untrained
    if part := trained_alone(config, workdir):
        if only and "reconstructions" not in only:
            raise ConfigError(
                f"--suite={suites}: no unified model was trained, and the {part} alone only "
                "reconstructs; use --suite=reconstructions"
            )
        console.print(f"no unified model was trained: only the {part} is scored")
        settings = dataclasses.replace(settings, prompts=0, questions=0, edits=0)
        load = functools.partial(Reconstructor.load, part=part)
        untrained = functools.partial(Reconstructor.untrained, part=part)
        label, only = source_label(config, workdir, part), ("reconstructions",)
        used |= {part: (label, chosen_step(workdir, label))}
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
        lambda: load(workdir, step),
        (lambda: untrained(config, tokenizer)) if baseline else None,
        settings,
        workdir,
        only=only,
        data=data_of(config, settings, split),
        about=about,
        console=console,
    )
    print_scores(flat, console)
    console.print(
        f"scores on the {split} split: {workdir / SCORES_FILE}", markup=False, soft_wrap=True
    )
    return flat


def chosen_suites(names: str | None) -> tuple[str, ...] | None:
    """The suites of a `--suite` flag; None: the default ones.

    Raises:
      ConfigError: there is no such suite.
    """
    if names is None:
        return None
    chosen = tuple(SUITES) if names == "all" else tuple(names.split(","))
    for name in chosen:
        if name not in SUITES:
            known = ", ".join((*SUITES, "all"))
            raise ConfigError(f"--suite={names}: {name!r} is unknown; choose from {known}")
    return chosen


def data_of(
    run: Mapping[str, Any], settings: EvaluationConfig, split: str = TEST
) -> EvaluationData:
    """The evaluation data of a run's configuration, with the exact judge if they are Scenes alone.

    Pictures have the same shapes as in training under the run's image policy.

    Raises SourceError when a split has too few records.
    """
    if source_kinds(run) == ["scenes"]:
        fields = run["data"]["scenes"].items()  # JSON has only lists
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
            f"intervals; hold out more (data.source.held_out), at least {FEWEST} per half"
        )
    return EvaluationData(examples)
