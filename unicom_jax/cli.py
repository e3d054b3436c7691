"""The `unicom` command: train, plan, sample, evaluate, report, sweep, import, export, data, ..."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unicom_jax.config.key import READABLE, STORES, checked_path
from unicom_jax.console import protect_output, settle_output
from unicom_jax.core.memory import keep_freed_memory
from unicom_jax.core.paths import as_path
from unicom_jax.evaluation.evaluate_flags import (
    EVALUATE,
    EVALUATE_EXAMPLES,
    add_evaluate_flags,
)
from unicom_jax.exchange.export_flags import EXPORT, EXPORT_EXAMPLES, add_export_flags
from unicom_jax.exchange.import_flags import IMPORT, IMPORT_EXAMPLES, add_import_flags
from unicom_jax.inference.sample_flags import SAMPLE, SAMPLE_EXAMPLES, add_sample_flags, number
from unicom_jax.parallel.cpu_threads import enough_cpu_threads
from unicom_jax.parallel.platform import skip_absent_tpus
from unicom_jax.planning.plan_flags import PLAN, PLAN_EXAMPLES, add_plan_flags
from unicom_jax.runs.lock import workdir_lock
from unicom_jax.runs.prepare_flags import PREPARE, PREPARE_EXAMPLES, add_prepare_flags
from unicom_jax.runs.workdir import check_name
from unicom_jax.sweeps import sweep_flags
from unicom_jax.training.train_flags import TRAIN, TRAIN_EXAMPLES, add_train_flags

# Imports of jax happen inside the commands, so that `--help` answers at once.

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

SHOW_EXAMPLES = """\
The picture shows a packed row as the model sees it: every token, its training target, which slots
each slot sees, and the rotary positions.

examples:
  unicom data show --config=experiments/quickstart.py --out=batch.png
  unicom data show --config=experiments/quickstart.py --config.pretrain.sequence_length=512"""

BENCH_EXAMPLES = """\
Times each step (read, decode, resize, tokenise, pack), then whole batches with 1 to --workers
processes, in turn with WebDataset and Hugging Face datasets, which do the same work on the same
documents (pip install 'unicom_jax[bench]').

examples:
  unicom data bench --config=my.py --workers=4
  unicom data bench --config=my.py --stage=sft --rounds=5 --seconds=10"""

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
        args.run(args)
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
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_train_flags(_command(commands, "train", _train, TRAIN, TRAIN_EXAMPLES, overrides=True))
    add_plan_flags(_command(commands, "plan", _plan, PLAN, PLAN_EXAMPLES, overrides=True))
    add_sample_flags(_command(commands, "sample", _sample, SAMPLE, SAMPLE_EXAMPLES))
    add_evaluate_flags(_command(commands, "evaluate", _evaluate, EVALUATE, EVALUATE_EXAMPLES))
    report = _command(commands, "report", _report, REPORT, REPORT_EXAMPLES)
    report.add_argument("--workdir", required=True, metavar="DIR", help="of a training run")
    _add_sweep(commands)
    add_export_flags(_command(commands, "export", _export, EXPORT, EXPORT_EXAMPLES))
    add_import_flags(_command(commands, "import", _import, IMPORT, IMPORT_EXAMPLES, overrides=True))
    _add_data(commands)
    _add_config(commands)
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
        check = partial(checked_path, flag, empty=False, stores=_stores(args.command, name))
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


def _stores(command: str, flag: str) -> tuple[str, ...]:
    """Which object stores a flag may name."""
    if flag in LOCAL_FLAGS or (command == "data" and flag == "out"):  # ArrayRecord's files
        return ()
    return STORES if flag in WRITTEN_FLAGS else READABLE


def _readable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _nearest(flag: str, parser: argparse.ArgumentParser) -> str:
    known = re.findall(r"--[a-z-]+", parser.format_usage())
    close = difflib.get_close_matches(flag.partition("=")[0], known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _command(
    group, name: str, run: Callable, text: str, examples: str = "", *, overrides: bool = False
) -> argparse.ArgumentParser:
    parser = group.add_parser(
        name,
        help=text,
        description=text,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, takes_overrides=overrides, prog=parser.prog, parser=parser)
    parser.set_defaults(takes_runner_flags=False, runner_flags=[])
    parser.set_defaults(leave=lambda status: None)  # several processes leave in their own way
    return parser


def _add_sweep(commands) -> None:
    flags = sweep_flags
    sweep = commands.add_parser(
        "sweep", help="Compare variants of a configuration over seeds.", allow_abbrev=False
    )
    actions = sweep.add_subparsers(dest="action", required=True, metavar="ACTION")
    flags.add_run_flags(_command(actions, "run", _sweep_run, flags.RUN, flags.RUN_EXAMPLES))
    flags.add_file(_command(actions, "status", _sweep_status, flags.STATUS))
    flags.add_table_flags(
        _command(actions, "table", _sweep_table, flags.TABLE, flags.TABLE_EXAMPLES)
    )
    flags.add_file(_command(actions, "report", _sweep_report, flags.REPORT, flags.REPORT_EXAMPLES))
    flags.add_compare_flags(
        _command(commands, "compare", _compare, flags.COMPARE, flags.COMPARE_EXAMPLES)
    )


def _add_config(commands) -> None:
    config = commands.add_parser("config", help="Look up configuration keys.", allow_abbrev=False)
    actions = config.add_subparsers(dest="action", required=True, metavar="ACTION")
    parser = _command(actions, "explain", _explain, EXPLAIN, EXPLAIN_EXAMPLES)
    parser.add_argument("key", nargs="?", default="", metavar="KEY", help="a key or a group")


def _add_data(commands) -> None:
    text = "Look at data, time their loading, and prepare them."
    data = commands.add_parser("data", help=text, description=text, allow_abbrev=False)
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = _command(
        actions, "show", _show, "Draw one packed batch as a picture.", SHOW_EXAMPLES, overrides=True
    )
    show.add_argument("--config", required=True, metavar="FILE", help="as for unicom train")
    show.add_argument(
        "--stage",
        metavar="NAME",
        help="stage whose rows are drawn; default: the first with a mixture",
    )
    show.add_argument(
        "--step", type=number(int, 0), default=0, metavar="N", help="training step; default 0"
    )
    show.add_argument(
        "--row",
        type=number(int, 0),
        metavar="N",
        help="row of the batch; default: the most varied one",
    )
    show.add_argument(
        "--out", default="batch.png", metavar="FILE", help="PNG to write; default: batch.png"
    )
    bench = _command(
        actions, "bench", _bench, "Time how batches are made.", BENCH_EXAMPLES, overrides=True
    )
    bench.add_argument("--config", required=True, metavar="FILE", help="as for unicom train")
    bench.add_argument(
        "--stage", metavar="NAME", help="stage to time; default: the first with a mixture"
    )
    bench.add_argument(
        "--workers",
        type=number(int, 1),
        default=2,
        metavar="N",
        help="largest number of processes; default 2",
    )
    bench.add_argument(
        "--seconds",
        type=number(float, 0.1),
        default=4.0,
        metavar="X",
        help="length of each measurement; default 4",
    )
    bench.add_argument(
        "--rounds", type=number(int, 1), default=3, metavar="N", help="measurements; default 3"
    )
    bench.add_argument(
        "--documents",
        type=number(int, 1),
        default=512,
        metavar="N",
        help="documents that every loader reads; default 512",
    )
    prepare = _command(actions, "prepare", _prepare, PREPARE, PREPARE_EXAMPLES, overrides=True)
    prepare.set_defaults(takes_runner_flags=True)
    add_prepare_flags(prepare)


# ---- commands ---------------------------------------------------------------------------------


def _console(quiet: bool = False):
    from unicom_jax.console import PlainConsole

    return PlainConsole(quiet=quiet)


def _train(args: argparse.Namespace) -> None:
    from unicom_jax.evaluation.while_training import make_observer
    from unicom_jax.parallel.processes import find_meeting, start
    from unicom_jax.runs.compiler import prepare_compiler
    from unicom_jax.runs.configuration import open_run
    from unicom_jax.training.run import run_stages
    from unicom_jax.training.stopping import stop_signals

    workdir = as_path(args.workdir)
    config = open_run(workdir, args.config, args.overrides, allow_change=args.allow_change)
    prepare_compiler(config.xla_flags, workdir, args.compilation_cache, args.dump_hlo)
    stages = None if args.stages is None else tuple(args.stages.split(","))
    given = {name: getattr(args, name) for name in ("coordinator", "processes", "process")}
    group = start(find_meeting(os.environ, **given), args.process_timeout, args.lost_after)
    args.leave = group.leave
    if group.count > 1:
        args.prog += f" (process {group.index} of {group.count})"  # errors begin with it
    lock = workdir_lock(workdir) if group.index == 0 else contextlib.nullcontext()
    with stop_signals() as stop, group.noticing_loss(), lock:
        console = _console(group.index > 0)
        run_stages(config, workdir, console, stages, group, stop, make_observer)


def _plan(args: argparse.Namespace) -> None:
    from unicom_jax.planning.command import run_plan

    run_plan(args, _console())


def _sample(args: argparse.Namespace) -> None:
    from unicom_jax.inference.command import run_sample

    run_sample(args, _console())


def _evaluate(args: argparse.Namespace) -> None:
    from unicom_jax.evaluation.command import run_evaluate

    names = ("step", "split", "baseline", "suites")
    choice = {name: getattr(args, name) for name in names}
    run_evaluate(as_path(args.workdir), _console(), **choice)


def _report(args: argparse.Namespace) -> None:
    from unicom_jax.evaluation.report import write_report

    path = write_report(as_path(args.workdir))
    _console().print(f"report: {path}")


def _sweep_run(args: argparse.Namespace) -> None:
    from unicom_jax.sweeps.command import run_sweep

    run_sweep(args, _console())


def _sweep_status(args: argparse.Namespace) -> None:
    from unicom_jax.sweeps.command import print_status

    print_status(args, _console())


def _sweep_table(args: argparse.Namespace) -> None:
    from unicom_jax.sweeps.command import print_table

    print_table(args, _console())


def _sweep_report(args: argparse.Namespace) -> None:
    from unicom_jax.sweeps.command import run_report

    run_report(args, _console())


def _compare(args: argparse.Namespace) -> None:
    from unicom_jax.sweeps.command import run_compare

    run_compare(args, _console())


def _export(args: argparse.Namespace) -> None:
    from unicom_jax.exchange.export import Options, export, read_size
    from unicom_jax.inference.verify import check_torch, verify
    from unicom_jax.runs.weights import Choice

    if args.verify and args.to != "pytorch":
        raise ValueError(f"--verify compares whole models; leave it out with --to={args.to}")
    if args.verify:
        check_torch()
    shard_bytes = read_size(args.max_shard_size)
    choice = Choice(args.weights, args.step)
    options = Options(args.to, args.dtype, shard_bytes, choice, args.overwrite)
    workdir, console = as_path(args.checkpoint), _console()
    with console.status("writing"):
        check = partial(verify, workdir, dtype=args.dtype, choice=choice, console=console)
        target = export(workdir, as_path(args.target), options, *([check] if args.verify else []))
    console.print(f"exported: {target}")


def _import(args: argparse.Namespace) -> None:
    from unicom_jax.exchange.imports import run_import

    writes = not args.dry_run and not args.model  # a whole model takes its place by one rename
    with workdir_lock(as_path(args.workdir)) if writes else contextlib.nullcontext():
        run_import(args, _console())


def _show(args: argparse.Namespace) -> None:
    from data_pipelines.build import load_or_train_tokenizer
    from data_pipelines.sequences.show import check_ending, show_batch
    from unicom_jax.config import resolve
    from unicom_jax.runs.loading import stage_loader
    from unicom_jax.runs.stages import check_row_stage, row_stages

    check_ending(args.out)
    config = resolve(args.config, args.overrides)
    stage = args.stage or row_stages(config)[0]
    check_row_stage(config, stage)
    tokenizer = load_or_train_tokenizer(config, None)
    loader = stage_loader(config, stage, tokenizer)
    path = show_batch(loader.at(args.step), tokenizer, args.out, args.row)
    _console().print(f"step {args.step} of stage {stage}: {path}")


def _bench(args: argparse.Namespace) -> None:
    from unicom_jax.runs.data_bench import run_bench

    run_bench(args, _console())


def _explain(args: argparse.Namespace) -> None:
    from unicom_jax.config.explain import explain

    _console().print(explain(args.key))


def _prepare(args: argparse.Namespace) -> None:
    from data_pipelines.preparation.prepare import prepare
    from unicom_jax.runs.packed import check_flags, engine_of, prepare_packed

    check_flags(args)
    if args.dataset == "packed":
        line = prepare_packed(args, _console())
    else:
        line = prepare(args.dataset, Path(args.out), args.package, args.size, engine_of(args))
    _console().print(line)


if __name__ == "__main__":
    sys.exit(main())
