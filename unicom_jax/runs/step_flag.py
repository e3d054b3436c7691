"""`--step`, a flag of all commands that use the weights of a run. Imports nothing heavy."""

from __future__ import annotations

import argparse


def add_step_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--step` to a command that uses the weights of a run."""
    parser.add_argument(
        "--step",
        default="",
        metavar="N",
        help='checkpoint of the last stage: a step, or "best" by held-out loss (with keep_best); '
        "default: the newest",
    )
