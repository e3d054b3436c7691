"""`unicom evaluate`: from a run's folder to its scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipelines.build import evaluates_on_training_data, open_examples
from data_pipelines.scenes.scene import SceneConfig
from data_pipelines.sources.split import EVALUATION
from unicom_jax.evaluation.data import EvaluationData
from unicom_jax.evaluation.run import SCORES_FILE, evaluate
from unicom_jax.evaluation.scenes import scenes_data
from unicom_jax.evaluation.scores import print_scores
from unicom_jax.evaluation.suite import EvaluationConfig
from unicom_jax.inference.generator import Generator


def run_evaluate(workdir: Path, console: Console) -> dict[str, float | int | None]:
    """Scores the newest weights of a run beside the same model untrained; prints the table.

    Raises CheckpointError without a checkpoint, SourceError without the data.
    """
    generator = Generator.load(workdir)
    untrained = Generator.untrained(generator.config, generator.tokenizer)
    settings = EvaluationConfig.of(generator.config)
    if evaluates_on_training_data(generator.config):
        console.print(
            "nothing was held out (data.source.held_out, eval_split): "
            "these are scores on training data"
        )
    data = data_of(generator.config, settings)
    flat = evaluate(generator, untrained, settings, workdir, data=data, console=console)
    print_scores(flat, console)
    console.print(f"scores: {workdir / SCORES_FILE}")
    return flat


def data_of(run: Mapping[str, Any], settings: EvaluationConfig) -> EvaluationData:
    """The evaluation data of a run's configuration: Scenes with the exact judge, others without."""
    if run["data"]["source"]["kind"] == "scenes":
        fields = run["data"]["scenes"].items()  # JSON knows lists only
        fields = {key: tuple(v) if isinstance(v, list) else v for key, v in fields}
        return scenes_data(settings, SceneConfig(**fields))
    source = open_examples(run, EVALUATION, with_edits=settings.edits > 0)
    return EvaluationData([source[i] for i in range(min(len(source), settings.examples))])
