"""Reads the files of a run for the report. Files may be missing, but not broken."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicom_jax.core.paths import as_path
from unicom_jax.evaluation.records import RECORDS_FILE, read_records
from unicom_jax.evaluation.scores import read_about, read_scores
from unicom_jax.runs.stages import STAGES, in_order, parse
from unicom_jax.runs.workdir import FACTS, ROLLOUTS, ROLLOUTS_FILE, read_json


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training stage.

    Attributes:
      name: its folder, relative to the run.
      train: lines of metrics.jsonl without evaluations, in order.
      evals: lines with "eval/<name>" keys, in order.
      facts: stage.json: "parameters" {part: count}, "steps", "seconds", "device",
        "tokens_per_second", and for the codec "latent_mean", "latent_std" (one number per channel).
        All are optional.
      rollouts: the last ones shown by a stage of reinforcement learning (`rl.shown.write_rows`).
    """

    name: str
    train: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    facts: dict[str, Any]
    rollouts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """All that the report shows; a container is empty if its file is missing."""

    workdir: Path
    config: dict[str, Any]
    stages: list[Stage]
    scores: dict[str, float | int | None]
    about: dict[str, Any]
    records: dict[str, list[dict[str, Any]]]

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.workdir.resolve().name)


def read_run(workdir: str | os.PathLike[str]) -> Run:
    """Reads a run's folder.

    Raises FileNotFoundError without the folder, ValueError naming a file that is not readable.
    """
    workdir = as_path(workdir)
    if not workdir.is_dir():
        raise FileNotFoundError(f"{workdir}: no such folder; give the folder of a run")
    scores, folder = workdir / "scores.json", workdir / "evaluation"
    config = _read_dict(workdir / "config.json")
    return Run(
        workdir=workdir,
        config=config,
        stages=[_read_stage(workdir, path.parent) for path in _stage_files(workdir, config)],
        scores=read_scores(scores) if scores.exists() else {},
        about=read_about(scores) if scores.exists() else {},
        records=read_records(folder) if (folder / RECORDS_FILE).exists() else {},
    )


def _stage_files(workdir: Path, config: Mapping[str, Any]) -> list[Path]:
    """A `metrics.jsonl` or else `stage.json` per stage folder, one or two levels down.

    Stages are in the order of training; other folders follow in the order of their start.
    """
    folders = {
        path.parent
        for name in ("metrics.jsonl", FACTS)
        for depth in ("*", "*/*")
        for path in workdir.glob(f"{depth}/{name}")
    }
    files = [next(p for p in (f / "metrics.jsonl", f / FACTS) if p.exists()) for f in folders]

    there = {parse(part) for folder in folders for part in folder.relative_to(workdir).parts}
    listed = [name for name in config.get("stages", ()) if name in STAGES]
    stages = in_order({"stages": listed}, there - {None})

    def order(path: Path) -> tuple[int, float, str]:
        parts = path.parent.relative_to(workdir).parts
        ranks = [stages.index(one) for part in parts if (one := parse(part)) in stages]
        return max(ranks, default=len(stages)), path.stat().st_mtime, str(path)

    return sorted(files, key=order)


def _read_stage(workdir: Path, folder: Path) -> Stage:
    rows = read_lines(folder / "metrics.jsonl")
    evals = [row for row in rows if any(key.startswith("eval/") for key in row)]
    train = [row for row in rows if not any(key.startswith("eval/") for key in row)]
    name = folder.relative_to(workdir).as_posix()
    facts, rollouts = (_read_dict(folder / path) for path in (FACTS, f"{ROLLOUTS}/{ROLLOUTS_FILE}"))
    return Stage(name, train, evals, facts, rollouts)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON. An unfinished last line, left by a run that was killed, is skipped."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{path}:{number}: not valid JSON ({error}); remove the line"
            ) from None
        if not isinstance(row, Mapping) or "step" not in row:
            raise ValueError(f'{path}:{number}: no "step" in this line; remove it')
        rows.append(dict(row))
    return rows


def _read_dict(path: Path) -> dict[str, Any]:
    return read_json(path, ValueError, "remove it or train again") if path.exists() else {}
