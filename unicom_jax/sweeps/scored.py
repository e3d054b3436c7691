"""Whether the variants of a sweep can have the scores that it asks for, before anything is trained.

A score that no variant has would be an empty column at the end of the sweep.
"""

from __future__ import annotations

from collections.abc import Iterable

from ml_collections import ConfigDict

from unicom_jax.config import ConfigError
from unicom_jax.evaluation.run import SUITES, UNIFIED, suite_of
from unicom_jax.runs.stages import UNIFIED as UNIFIED_MODEL
from unicom_jax.runs.stages import occurrences, reconstructing
from unicom_jax.sweeps.sweep import stage_of


def suites_for(scores: Iterable[str]) -> str:
    """What `unicom evaluate --suite` needs for some scores; "": what it does without the flag."""
    return "all" if UNIFIED in map(suite_of, scores) else ""


def check_scores(scores: Iterable[str], configs: Iterable[ConfigDict]) -> None:
    """Raises ConfigError for a score that none of the configurations has."""
    configs = list(configs)
    for score in scores:
        reasons = [_missing(score, config) for config in configs]
        if all(reasons):
            raise ConfigError(f"score {score!r}: {reasons[0]}")


def _missing(score: str, config: ConfigDict) -> str:
    """Why a configuration does not have a score; "" if it does."""
    if (found := stage_of(score)) is not None:
        stages = {one.label: one for one in occurrences(config.stages)}
        if found[0] not in stages:
            return f"no variant trains the stage {found[0]}; stages are {', '.join(stages)}"
        name = stages[found[0]].name
        return "" if config[name].eval_every else f"is not measured; set {name}.eval_every above 0"
    if (suite := suite_of(score)) is None:
        return "is no score of unicom evaluate; docs/evaluation.md lists them"
    parts = {one.spec.part for one in occurrences(config.stages)}
    if UNIFIED_MODEL.part not in parts and suite != "reconstructions":
        return "needs a unified model, and no variant trains one"
    if not parts & {UNIFIED_MODEL.part, *reconstructing(config)}:
        return "needs a codec or an autoencoder, and no variant trains one"
    key = SUITES[suite].count
    return "" if config.evaluation[key] else f"has no samples; set evaluation.{key} above 0"
