"""The flags of `unicom data show` and `bench`. Imports nothing heavy, so that `--help` answers at
once."""

from __future__ import annotations

import argparse

from unicom_jax.config.flags import number

SHOW = "Draw one packed batch as a picture."
SHOW_EXAMPLES = """\
The picture shows a packed row as the model sees it: every token, its training target, which slots
each slot sees, and the rotary positions.

examples:
  unicom data show --config=experiments/quickstart.py --out=batch.png
  unicom data show --config=experiments/quickstart.py --config.pretrain.sequence_length=512"""

BENCH = "Time how batches are made."
BENCH_EXAMPLES = """\
Times each step (read, decode, resize, tokenise, pack), then whole batches with 1 to --workers
processes, in turn with WebDataset and Hugging Face datasets, which do the same work on the same
documents (pip install 'unicom_jax[bench]').

examples:
  unicom data bench --config=my.py --workers=4
  unicom data bench --config=my.py --stage=sft --rounds=5 --seconds=10"""


def add_show_flags(parser: argparse.ArgumentParser) -> None:
    _add_rows(parser, "stage whose rows are drawn")
    parser.add_argument(
        "--step", type=number(int, 0), default=0, metavar="N", help="training step; default 0"
    )
    parser.add_argument(
        "--row",
        type=number(int, 0),
        metavar="N",
        help="row of the batch; default: the most varied one",
    )
    parser.add_argument(
        "--out", default="batch.png", metavar="FILE", help="PNG to write; default: batch.png"
    )


def add_bench_flags(parser: argparse.ArgumentParser) -> None:
    _add_rows(parser, "stage to time")
    parser.add_argument(
        "--workers",
        type=number(int, 1),
        default=2,
        metavar="N",
        help="largest number of processes; default 2",
    )
    parser.add_argument(
        "--seconds",
        type=number(float, 0.1),
        default=4.0,
        metavar="X",
        help="length of each measurement; default 4",
    )
    parser.add_argument(
        "--rounds", type=number(int, 1), default=3, metavar="N", help="measurements; default 3"
    )
    parser.add_argument(
        "--documents",
        type=number(int, 1),
        default=512,
        metavar="N",
        help="documents that every loader reads; default 512",
    )


def _add_rows(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="as for unicom train")
    parser.add_argument(
        "--stage", metavar="NAME", help=f"{what}; default: the first with a mixture"
    )
