"""`--step`, a flag of all commands that use the weights of a run. Imports nothing heavy."""

from __future__ import annotations

import argparse


def add_step_flag(parser: argparse.ArgumentParser) -> None:
    """Of the commands that use a run's weights."""
    parser.add_argument(
        "--step",
        default="",
        metavar="N",
        help='the checkpoint of the last stage: a number, or "best" by held-out loss (keep_best); '
        "default: the newest",
    )
