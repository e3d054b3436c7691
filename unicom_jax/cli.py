"""The `unicom` command: train, plan, sample, evaluate, report, sweep, import, export, data, ..."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from unicom_jax import commands
from unicom_jax.config.key import READABLE, STORES, checked_path
from unicom_jax.console import protect_output, settle_output
from unicom_jax.core.memory import keep_freed_memory
from unicom_jax.evaluation.evaluate_flags import (
    EVALUATE,
    EVALUATE_EXAMPLES,
    add_evaluate_flags,
)
from unicom_jax.exchange.export_flags import EXPORT, EXPORT_EXAMPLES, add_export_flags
from unicom_jax.exchange.import_flags import IMPORT, IMPORT_EXAMPLES, add_import_flags
from unicom_jax.inference.sample_flags import SAMPLE, SAMPLE_EXAMPLES, add_sample_flags
from unicom_jax.parallel.cpu_threads import enough_cpu_threads
from unicom_jax.parallel.platform import skip_absent_tpus
from unicom_jax.planning.plan_flags import PLAN, PLAN_EXAMPLES, add_plan_flags
from unicom_jax.runs.data_flags import (
    BENCH,
    BENCH_EXAMPLES,
    SHOW,
    SHOW_EXAMPLES,
    add_bench_flags,
    add_show_flags,
)
from unicom_jax.runs.prepare_flags import PREPARE, PREPARE_EXAMPLES, add_prepare_flags
from unicom_jax.runs.workdir import check_name
from unicom_jax.sweeps import sweep_flags
from unicom_jax.training.train_flags import TRAIN, TRAIN_EXAMPLES, add_train_flags

REPORT = "Write a self-contained HTML page about a run."
REPORT_EXAMPLES = """\
Writes WORKDIR/report.html: loss curves, scores with their intervals, examples, the configuration.
Works at any time, also during training; what does not exist yet is left out.

example:
  unicom report --workdir=runs/quickstart"""
OUR_PACKAGES = ("unicom_jax", "data_pipelines")
PATH_FLAGS = {
    *("workdir", "checkpoint", "config", "out", "keep", "target", "package", "features", "image"),
    *("encoder", "language", "compressor", "decoder", "autoencoder", "cheers", "model"),
}
LOCAL_FLAGS = {"config", "keep"}
WRITTEN_FLAGS = {"workdir", "target", "out"}

ABOUT = """\
Train and use multimodal models that look at pictures, talk about them, draw and edit them.

A run has one folder, its workdir: train writes it, and sample, evaluate and report read it. It
contains the configuration, the tokenizer and the weights, so nothing else is needed later."""

EXAMPLES = """\
a first run, from start to end:
  unicom train --config=experiments/quickstart.py --workdir=runs/quickstart
  unicom sample --checkpoint=runs/quickstart --prompt="a red circle" --out=circle.png
  unicom evaluate --workdir=runs/quickstart
  unicom report --workdir=runs/quickstart
  unicom export --checkpoint=runs/quickstart --to=pytorch exports/quickstart

unicom COMMAND --help explains a command and shows examples.

exit status:
  0    done
  1    failed; one line on stderr says why and what to do (UNICOM_TRACEBACK=1 shows a traceback)
  2    wrong flags
  75   unicom train was stopped by SIGTERM, SIGHUP or Ctrl-C and has saved; run it again to resume
  76   another process of unicom train is gone; start all of them again
  130  interrupted at once"""

EXPLAIN = "Show what a configuration key means, its default, its range, and whether it may change."
EXPLAIN_EXAMPLES = """\
examples:
  unicom config explain                            # all groups
  unicom config explain unified.transformer        # the keys of a group
  unicom config explain pretrain.learning_rate     # one key"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Expected failures are one line on stderr and status 1, or their own."""
    args = _parse(arguments)
    if arguments is None:
        _own_the_process(args.command)
    try:
        _clean(args)
        commands.run(args)
    except KeyboardInterrupt:
        kept = "; the last checkpoint is kept" if args.command == "train" else ""
        print(f"interrupted{kept}", file=sys.stderr, flush=True)
        status = 130
    except Exception as error:
        if os.environ.get("UNICOM_TRACEBACK") or not _is_expected(error):
            raise
        print(f"{args.prog}: {_readable(_reason(error))}", file=sys.stderr, flush=True)
        status = getattr(error, "exit_status", 1)
    else:
        status = 0
    if arguments is None:
        settle_output()
        if status not in (0, 75):
            args.leave(status)
    return status


def _own_the_process(command: str) -> None:
    """What concerns the whole process, where the command line started it and no test."""
    protect_output()
    skip_absent_tpus()
    if command not in ("import", "export"):  # they come near the memory's limit and repeat nothing
        keep_freed_memory()
    enough_cpu_threads()
    logging.basicConfig(format="! %(message)s", level=logging.WARNING)
    # When one of Orbax's reads fails, asyncio logs how each of the others ended, with tracebacks.
    # The error itself is reported in one line.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _report_unraisable


def _report_unraisable(unraisable: Any) -> None:
    """Python's own report, save for reads that come back after Orbax gave up on a damaged
    checkpoint and closed its event loop: the error itself is reported in one line."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


def _reason(error: Exception) -> str:
    """An error in words; of the system's without its number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    names = (os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None)
    return ": ".join((*filter(None, (" and ".join(names),)), error.strerror))


def _is_expected(error: Exception) -> bool:
    """Whether the message names a file or key and the fix, so that no traceback is needed.

    That holds for our own error types, for what the system says about files, and for a ValueError
    that our own code raises. JAX raises ValueErrors too; it cuts its frames from their tracebacks
    and leaves a note about that.
    """
    if isinstance(error, OSError) or _is_ours(type(error).__module__):
        return True
    if not isinstance(error, ValueError) or getattr(error, "__notes__", None):
        return False
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return _is_ours(trace.tb_frame.f_globals.get("__name__", ""))


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in OUR_PACKAGES


# ---- flags ------------------------------------------------------------------------------------


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="unicom",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_train_flags(_command(group, "train", TRAIN, TRAIN_EXAMPLES, overrides=True))
    add_plan_flags(_command(group, "plan", PLAN, PLAN_EXAMPLES, overrides=True))
    add_sample_flags(_command(group, "sample", SAMPLE, SAMPLE_EXAMPLES))
    add_evaluate_flags(_command(group, "evaluate", EVALUATE, EVALUATE_EXAMPLES))
    report = _command(group, "report", REPORT, REPORT_EXAMPLES)
    report.add_argument("--workdir", required=True, metavar="DIR", help="of a training run")
    _add_sweep(group)
    add_export_flags(_command(group, "export", EXPORT, EXPORT_EXAMPLES))
    add_import_flags(_command(group, "import", IMPORT, IMPORT_EXAMPLES, overrides=True))
    _add_data(group)
    _add_config(group)
    args, extra = parser.parse_known_args(arguments)
    args.overrides = [flag for flag in extra if flag.startswith("--config.")]
    if bare := [flag for flag in args.overrides if "=" not in flag]:
        args.parser.error(f"{bare[0]} needs a value after =, like {bare[0]}=1")
    unknown = [flag for flag in extra if not flag.startswith("--config.")]
    if args.takes_runner_flags and args.runner:
        args.runner_flags, unknown = unknown, []  # Beam says which of them it knows
    if unknown:
        args.parser.error(f"unknown: {unknown[0]}{_nearest(unknown[0], args.parser)}")
    if args.overrides and not args.takes_overrides:
        of = "a trained model; leave it out"
        if args.command == "sweep":
            of = "a sweep, which FILE has; set it there"
        args.parser.error(f"{args.overrides[0]} cannot change the configuration of {of}")
    return args


def _clean(args: argparse.Namespace) -> None:
    """Writes out `~` in flags that name files; refuses empty ones, and addresses of object stores
    where they cannot be used."""
    given = vars(args)
    for name in PATH_FLAGS & given.keys():
        flag, value = f"--{name}", given[name]
        check = partial(checked_path, flag, empty=False, stores=_stores(args, name))
        if isinstance(value, list):
            given[name] = list(map(check, value))
        elif value is not None:
            given[name] = check(value)
    if args.command in ("train", "import"):
        check_name(args.workdir)
    for name in ("prompt", "ask", "edit"):  # bytes that are no UTF-8 come as lone surrogates
        value = given.get(name)
        if isinstance(value, str):
            given[name] = _readable(value)
        elif isinstance(value, list):
            given[name] = list(map(_readable, value))


def _stores(args: argparse.Namespace, flag: str) -> tuple[str, ...]:
    """Which object stores a flag may name."""
    prepares = "dataset" in args  # writes ArrayRecord files
    if flag in LOCAL_FLAGS or (prepares and flag == "out"):
        return ()
    return STORES if flag in WRITTEN_FLAGS else READABLE


def _readable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _nearest(flag: str, parser: argparse.ArgumentParser) -> str:
    known = re.findall(r"--[a-z-]+", parser.format_usage())
    close = difflib.get_close_matches(flag.partition("=")[0], known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _command(
    group, name: str, text: str, examples: str = "", *, overrides: bool = False
) -> argparse.ArgumentParser:
    parser = group.add_parser(
        name,
        help=text,
        description=text,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(takes_overrides=overrides, prog=parser.prog, parser=parser)
    parser.set_defaults(takes_runner_flags=False, runner_flags=[])
    parser.set_defaults(leave=lambda status: None)  # several processes leave in their own way
    return parser


def _add_sweep(group) -> None:
    flags, text = sweep_flags, "Compare variants of a configuration over seeds."
    sweep = group.add_parser("sweep", help=text, description=text, allow_abbrev=False)
    actions = sweep.add_subparsers(dest="action", required=True, metavar="ACTION")
    flags.add_run_flags(_command(actions, "run", flags.RUN, flags.RUN_EXAMPLES))
    flags.add_file(_command(actions, "status", flags.STATUS))
    flags.add_table_flags(_command(actions, "table", flags.TABLE, flags.TABLE_EXAMPLES))
    flags.add_file(_command(actions, "report", flags.REPORT, flags.REPORT_EXAMPLES))
    flags.add_compare_flags(_command(group, "compare", flags.COMPARE, flags.COMPARE_EXAMPLES))


def _add_config(group) -> None:
    text = "Look up configuration keys."
    config = group.add_parser("config", help=text, description=text, allow_abbrev=False)
    actions = config.add_subparsers(dest="action", required=True, metavar="ACTION")
    parser = _command(actions, "explain", EXPLAIN, EXPLAIN_EXAMPLES)
    parser.add_argument("key", nargs="?", default="", metavar="KEY", help="a key or a group")


def _add_data(group) -> None:
    text = "Look at data, time their loading, and prepare them."
    data = group.add_parser("data", help=text, description=text, allow_abbrev=False)
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_show_flags(_command(actions, "show", SHOW, SHOW_EXAMPLES, overrides=True))
    add_bench_flags(_command(actions, "bench", BENCH, BENCH_EXAMPLES, overrides=True))
    prepare = _command(actions, "prepare", PREPARE, PREPARE_EXAMPLES, overrides=True)
    prepare.set_defaults(takes_runner_flags=True)
    add_prepare_flags(prepare)


if __name__ == "__main__":
    sys.exit(main())
