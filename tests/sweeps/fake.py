"""A sweep whose runs were never trained: folders with metrics, scores and outcomes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from tests.tiny import tiny_config
from unicom_jax.config import to_json
from unicom_jax.evaluation.intervals import wilson
from unicom_jax.evaluation.records import Answer, Generation, write_records
from unicom_jax.evaluation.scores import Score, flatten, proportion, write_scores
from unicom_jax.sweeps.outcomes import DONE, FAILED, write_outcome
from unicom_jax.sweeps.plan import Plan, make_plan
from unicom_jax.sweeps.sweep import Contrast, Sweep

FILE = """\
from tests.sweeps.fake import fake_sweep as get_sweep
"""
KINDS = ("colour", "count")
CATEGORIES = {"single": 4, "two": 8}
SCORES = ("understanding/qa", "generation/overall", "reconstruction/kid", "pretrain:eval/loss")


def fake_sweep(**changes) -> Sweep:
    given = {
        "claim": "Wide answers more questions.",
        "config": tiny_config(pretrain__eval_every=2),
        "variants": {
            "narrow": {},
            "wide": {"unified.transformer.width": 64},
            "broken": {"unified.transformer.depth": 7},
        },
        "seeds": (0, 1, 2),
        "scores": SCORES,
        "contrasts": (
            Contrast("understanding/qa", better="wide", worse="narrow", paper="+3 points"),
            Contrast("pretrain:eval/loss", better="wide", worse="narrow"),
            Contrast("understanding/qa", better="broken", worse="narrow"),
        ),
        "minutes": 10,
    }
    return Sweep(**{**given, **changes})


def write_scored(folder: Path, *, seed: int, rate: float, loss: float = 1.0, split="test") -> None:
    """Outcomes of 60 pictures with two questions each, and of 12 drawings; `rate` is how often a
    question is answered. Pictures are as hard for every run."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).random((60, 2))
    right = hard < rate + 0.05 * rng.standard_normal()
    answers = [
        Answer(f"picture/{i}", kind, None, f"what {kind}?", "a", "a", float(good), bool(good))
        for i, row in enumerate(right)
        for kind, good in zip(KINDS, row, strict=True)
    ]
    drawn = [
        Generation(f"prompt/{i}{name}", name, f"draw {i}", None, i < count / 2 + (rate > 0.5), "")
        for name, count in CATEGORIES.items()
        for i in range(count)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "evaluation", {"answers": answers, "generations": drawn})
    by_category = [
        proportion(f"generation/{name}", [one.correct for one in drawn if one.category == name])
        for name in CATEGORIES
    ]
    overall = float(np.mean([score.interval.value for score in by_category]))
    scores = [
        proportion("understanding/qa", [a.correct for a in answers], 0.4, [a.key for a in answers]),
        *by_category,
        Score("generation/overall", wilson(1, 2)._replace(value=overall), 12),
        Score("reconstruction/kid", wilson(1, 2)._replace(value=rate / 10), 60),
    ]
    about = {"split": split, "data": "scenes", "judge": "exact", "answer_rule": "exact"}
    write_scores(folder / "scores.json", flatten(scores), about)
    stage = folder / "pretrain"
    stage.mkdir(exist_ok=True)
    rows = [{"step": step, "eval/loss": loss + 4 / step, "eval/flow": 0.1} for step in (2, 4)]
    rows.insert(0, {"step": 1, "loss": 9.0})
    (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_fake_sweep(workdir: Path) -> tuple[Sweep, Plan]:
    """`wide` answers more than `narrow`; `broken` failed, and its third run is missing."""
    sweep = fake_sweep()
    plan = make_plan(sweep)
    spent = {"cpu_seconds": 10.0, "seconds": 6.0, "commit": "abc"}
    for run in plan.runs:
        for job in plan.needed(run):
            broken = run.variant == "broken" and job.label == "pretrain"
            each = {"steps": 4, "tokens_per_step": 100, "flops_per_step": 5e6, "bytes": 1}
            status = {"status": FAILED, "reason": "no"} if broken else {"status": DONE, **each}
            if not (broken and run.seed == 2):
                write_outcome(workdir, job.id, **status, **spent)
        if run.variant != "broken":
            wide = run.variant == "wide"
            rate, loss = (0.8, 1.0 + 0.01 * run.seed) if wide else (0.4, 1.52 - 0.01 * run.seed)
            write_scored(run.job.folder(workdir), seed=run.seed, rate=rate, loss=loss)
            write_outcome(workdir, run.job.id, status=DONE, **spent)
    return sweep, plan


def write_hand_made(
    workdir: Path, *, seed: int, rate: float, split: str = "test", **overrides
) -> Path:
    """A run that `unicom compare` reads."""
    write_scored(workdir, seed=seed, rate=rate, split=split)
    config = tiny_config(seed=seed, **overrides)
    (workdir / "config.json").write_text(to_json(config))
    return workdir


def plan_without_scores() -> tuple[Sweep, Plan]:
    """A sweep that measures held-out metrics alone."""
    sweep = dataclasses.replace(fake_sweep(), scores=("pretrain:eval/loss",), contrasts=())
    return sweep, make_plan(sweep)
