"""The flags of `unicom sweep` and `unicom compare`. Imports nothing heavy, so that `--help` answers
at once."""

from __future__ import annotations

import argparse

from unicom_jax.config.flags import number

RUN = "Train and score all variants of a sweep, or resume it."
RUN_EXAMPLES = """\
FILE is a Python file with get_sweep(): a base configuration, named variants of it, seeds, what is
measured and the claim (docs/sweeps.md, experiments/sweeps/). Stages that several variants have in
common are trained once. The same command resumes after any interruption. Run it in several
terminals or on several machines with one --workdir, and they share the work.

A variant that fails is one row of the table, with its reason, and is tried again when the command
is run again. Logs are in WORKDIR/logs, one per stage and run. At the end the table and the report
are written; each run is a workdir of its own in WORKDIR/runs, for unicom sample and report.

examples:
  unicom sweep run experiments/sweeps/smoke.py --dry-run       # what it would do, and how long
  unicom sweep run FILE --measure --dry-run                    # the same, from measured steps
  unicom sweep run experiments/sweeps/smoke.py --jobs=2
  unicom sweep run FILE --workdir=/shared/sweep --shard=3/16   # the 4th of 16 tasks of an array
  RAY_ADDRESS=auto UNICOM_RAY="num_gpus=1" unicom sweep run FILE --engine=ray --jobs=8
  UNICOM_SLURM="slurm_partition=gpu gpus_per_node=1" unicom sweep run FILE --engine=slurm --jobs=64

Exit status: 0 all variants have results, 1 some have none, 75 stopped (SIGTERM or Ctrl-C)."""
STATUS = "Show which stages and runs of a sweep are done, running, waiting or failed."
TABLE = "Write results.csv and results.parquet, and print the comparisons of a sweep."
TABLE_EXAMPLES = """\
The files have a row for each metric of each evaluation: variant, seed, stage, step, value and
interval, operations, tokens, CPU time, commit. They can be written while the sweep is running.

examples:
  unicom sweep table experiments/sweeps/smoke.py
  unicom sweep table experiments/sweeps/smoke.py --markdown"""
REPORT = "Write one self-contained HTML page about a sweep."
REPORT_EXAMPLES = """\
Writes WORKDIR/report.html: the claim and the verdict, every comparison with its interval, curves
over steps, operations and CPU time, what failed, and what each variant changes.

example:
  unicom sweep report experiments/sweeps/smoke.py"""
COMPARE = "Compare runs that were scored, or show how seeds of one configuration differ."
COMPARE_EXAMPLES = """\
Runs whose configurations differ in nothing but the seed form a group. Every further group is
compared with the first one, in all scores that they have in common. Differences are paired by seed
and by test item; intervals are of 95%, p values are adjusted for the number of comparisons
(Holm). With one seed the interval covers test items alone. Of a single group, each score's mean and
range over its seeds are shown. See docs/sweeps.md.

examples:
  unicom compare runs/a runs/b
  unicom compare runs/a-0 runs/a-1 runs/a-2
  unicom compare runs/a-0 runs/a-1 runs/a-2 runs/b-0 runs/b-1 runs/b-2 --markdown"""
ENGINES = ("local", "ray", "slurm")


def add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="Python file with get_sweep()")
    parser.add_argument(
        "--workdir", metavar="DIR", help="of the sweep; default: runs/sweeps/NAME of FILE's name"
    )


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    add_file(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan, the predicted CPU time and disk space; train nothing",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="predict the time of each distinct stage from a few of its steps, which takes half a "
        "minute or more for each, and print the plan before it starts",
    )
    parser.add_argument(
        "--jobs", type=number(int, 1), default=1, metavar="N", help="jobs at once; default 1"
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="local: processes of this machine (default); ray: tasks of a Ray cluster; slurm: "
        "SLURM jobs, by submitit",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="only each Nth run, from I (0 to N-1) on, with the stages that it needs",
    )


def add_table_flags(parser: argparse.ArgumentParser) -> None:
    add_file(parser)
    add_form_flags(parser)


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="workdirs with scores.json")
    add_form_flags(parser)


def add_form_flags(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    for name, what in (("markdown", "Markdown"), ("latex", "LaTeX (booktabs)")):
        form.add_argument(
            f"--{name}", dest="form", action="store_const", const=name, help=f"print {what}"
        )


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no I/N with I from 0 to N-1, such as 0/4")
    return int(index), int(count)
