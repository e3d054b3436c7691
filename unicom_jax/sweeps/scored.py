"""Whether the variants of a sweep can have the scores that it asks for, before anything is trained.

A score that no variant has would be an empty column at the end of the sweep.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ml_collections import ConfigDict

from unicom_jax.config import ConfigError
from unicom_jax.runs.stages import occurrences
from unicom_jax.sweeps.sweep import stage_of

# Scores of `unicom evaluate`, and the key of `evaluation` that says on how many samples.
COUNTS = (
    (r"reconstruction/(psnr|ssim|agreement|kid)", "pictures"),
    (r"generation/\w+", "prompts"),
    (r"understanding/qa(/\w+)?", "questions"),
    (r"understanding/caption(_f1)?", "pictures"),
    (r"editing/(reached|unchanged|success(/\w+)?)", "edits"),
    (
        r"unified/(cosine|agreement|(caption_)?(kept|invented))(/true caption|/shuffled)?",
        "pictures",
    ),
)
UNIFIED = "unified/"  # begins the scores of a suite that `unicom evaluate` runs on request alone


def suites_for(scores: Iterable[str]) -> str:
    """What `unicom evaluate --suite` needs for some scores; "": what it does without the flag."""
    return "all" if any(score.startswith(UNIFIED) for score in scores) else ""


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
    key = next((key for pattern, key in COUNTS if re.fullmatch(pattern, score)), None)
    if key is None:
        return "is no score of unicom evaluate; docs/evaluation.md lists them"
    return "" if config.evaluation[key] else f"has no samples; set evaluation.{key} above 0"
