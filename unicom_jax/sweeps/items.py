"""Scores of a run as sums over test items, from the outcomes that `unicom evaluate` keeps."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unicom_jax.evaluation.records import OUTCOMES_FILE, read_outcomes
from unicom_jax.evaluation.report_inputs import read_lines
from unicom_jax.evaluation.run import RECORDS_FOLDER, SCORES_FILE
from unicom_jax.evaluation.scores import is_of_features, read_about, read_scores, style_of
from unicom_jax.sweeps.statistics import MEASURED_BY, Outcomes
from unicom_jax.sweeps.sweep import stage_of

Row = Mapping[str, Any]
# name of a score -> suite of the outcomes, the field that it is the mean of, the field whose value
# the last part of the name gives.
FIELDS: tuple[tuple[str, str, str, str], ...] = (
    (r"reconstruction/(psnr|ssim|agreement)", "reconstructions", r"\1", ""),
    (r"generation/overall", "generations", "correct", ""),
    (r"generation/(?!kid|retrieval)(.+)", "generations", "correct", "category"),
    (r"understanding/qa", "answers", "score", ""),
    (r"understanding/qa/(.+)", "answers", "score", "kind"),
    (r"understanding/caption", "captions", "correct", ""),
    (r"understanding/caption_f1", "captions", "overlap", ""),
    (r"editing/(success|reached|unchanged)", "edits", r"\1", ""),
    (r"editing/success/(.+)", "edits", "success", "kind"),
    (r"unified/(cosine|agreement|caption_kept|caption_invented)", "unified", r"\1", ""),
)
# Held-out metrics of which more is better, and their parts, such as eval/text_accuracy/TASK.
# "drawing/" begins the drawer's terms in a stage that trains captioner and drawer.
GAINS = re.compile(r"eval/(drawing/)?(text_accuracy|retrieval|reward)(/.+)?")
ASKED = ("question", "instruction", "prompt")  # tell the samples of one picture apart


def outcomes_of(folder: Path, score: str) -> Outcomes | None:
    """A score of a run's folder; None where it has none. Its value is NaN if it was no finite
    number.

    Raises:
      ValueError: the outcomes of the items are those of another evaluation.
    """
    if (found := stage_of(score)) is not None:
        value = last_value(folder, *found)
        return None if value is None else Outcomes(value)
    path = folder / SCORES_FILE
    flat = read_scores(path) if path.is_file() else {}
    if score not in flat:
        return None
    facts = _facts(read_about(path), score, flat.get(f"{score}.n"))
    if flat[score] is None:
        return Outcomes(math.nan, facts=facts)
    value = float(flat[score])
    items, clusters = _items(_kept(folder, path.stat().st_mtime_ns), score)
    if items and not math.isclose(sum(items.values()), value, rel_tol=1e-4, abs_tol=1e-6):
        raise ValueError(
            f"{folder / RECORDS_FOLDER / OUTCOMES_FILE} gives {score} {sum(items.values()):.6g}, "
            f"{path} {value:.6g}; they are of two evaluations, so run unicom evaluate again"
        )
    return Outcomes(value, items, clusters, facts)


def _facts(about: Mapping[str, Any], score: str, samples: int | None) -> dict[str, Any]:
    """The facts of `Outcomes`; older versions of the code kept fewer of them in `about`."""
    found = _found(score)
    of_prompts = found is not None and found[0] == "generations"
    facts = {
        "samples": samples,
        "pictures": None if of_prompts else about.get("pictures"),
        "rule": about.get("answer_rule") if score.startswith("understanding/qa") else None,
        MEASURED_BY: about.get(MEASURED_BY) if is_of_features(score) else None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def last_value(folder: Path, stage: str, metric: str) -> float | None:
    """A metric of a stage at its last evaluation."""
    for row in reversed(read_lines(folder / stage / "metrics.jsonl")):
        if metric in row:
            return float(row[metric])
    return None


def is_higher_better(score: str) -> bool:
    """Whether more of a score is better: of held-out metrics, of shares and rewards alone."""
    found = stage_of(score)
    if found is None:
        return style_of(score).higher_is_better
    return GAINS.fullmatch(found[1]) is not None


@functools.lru_cache(maxsize=64)
def _kept(folder: Path, changed: int) -> tuple[Row, ...]:
    """The outcomes of the trained model, read once for all scores of an evaluation."""
    del changed
    records = folder / RECORDS_FOLDER
    if not (records / OUTCOMES_FILE).is_file():
        return ()
    return tuple(row for row in read_outcomes(records) if row["model"] == "trained")


def _items(rows: tuple[Row, ...], score: str) -> tuple[dict[str, float], dict[str, str]]:
    """By item: weight times outcome; and the picture of each."""
    found = _found(score)
    if found is None:
        return {}, {}
    suite, field, choice = found
    chosen = [row for row in rows if row["suite"] == suite and choice(row)]
    chosen = [row for row in chosen if row.get(field) is not None]
    if not chosen:
        return {}, {}
    groups = Counter(_group(row, score) for row in chosen)
    items: dict[str, float] = {}
    clusters: dict[str, str] = {}
    for row in chosen:
        name = _name(row, items)
        items[name] = float(row[field]) / (len(groups) * groups[_group(row, score)])
        clusters[name] = row["key"]
    return items, clusters


def _found(score: str) -> tuple[str, str, Callable[[Row], bool]] | None:
    for pattern, suite, field, key in FIELDS:
        if match := re.fullmatch(pattern, score):
            value = match.groups()[-1] if key else None
            field = match.expand(field) if "\\" in field else field
            return suite, field, lambda row, key=key, value=value: not key or row[key] == value
    return None


def _group(row: Row, score: str) -> str:
    """The mean of categories counts each of them alike."""
    return row["category"] if score == "generation/overall" else ""


def _name(row: Row, taken: Mapping[str, Any]) -> str:
    """The sample's name; a question that is asked twice about a picture is counted."""
    asked = next((str(row[field]) for field in ASKED if field in row), "")
    name, number = f"{row['key']} {asked}", 1
    while name in taken:
        number += 1
        name = f"{row['key']} {asked} {number}"
    return name
