"""The flags of `unicom evaluate`. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse

from unicom_jax.runs.step_flag import add_step_flag

EVALUATE = "Score a run, with the untrained model as the baseline."
EVALUATE_EXAMPLES = """\
Writes into the workdir, each file completely or not at all:
  scores.json                every score with its 95% interval, and how it was computed
  evaluation/outcomes.jsonl  the outcome of every sample, to compare two runs sample by sample
  evaluation/records.json    the samples that unicom report shows, with their pictures

The groups evaluation and sample of the configuration set how much is evaluated and how the model
samples. Scenes of both splits are draws that no run was trained on. For other data,
data.source.held_out or eval_split sets what is held out, and a hash of a record's index assigns it
to one of the splits.

examples:
  while working     unicom evaluate --workdir=runs/quickstart --split=development
  to report         unicom evaluate --workdir=runs/quickstart
  an earlier step   unicom evaluate --workdir=runs/quickstart --step=best
  Unified-Bench     unicom evaluate --workdir=runs/quickstart --suite=unified
  best of 8         unicom evaluate --workdir=runs/quickstart --suite=generations --best-of=8"""


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a training run")
    add_step_flag(parser)
    parser.add_argument(
        "--split",
        choices=("development", "test"),
        default="test",
        help="development: for every choice that you make; test (default): for reported scores. "
        "They share no sample",
    )
    parser.add_argument(
        "--suite",
        dest="suites",
        metavar="NAME[,NAME]",
        help="score these suites alone: reconstructions, generations, answers, captions, edits, "
        "unified, or all. unified describes a picture, draws the description and compares; it runs "
        "only when it is named. The scores and samples replace those of an earlier evaluation. "
        "Default: all but unified",
    )
    parser.add_argument(
        "--best-of",
        type=int,
        default=1,
        metavar="G",
        help="draw each prompt (generations) or description (unified) G times and score the "
        "drawing that the judge likes best, or the encoder where there is no judge: what choosing "
        "among samples gains without training. Default: 1",
    )
    parser.add_argument(
        "--no-baseline",
        dest="baseline",
        action="store_false",
        help="do not score the untrained model, which takes as long as the trained one (the two "
        "are never in memory together)",
    )
