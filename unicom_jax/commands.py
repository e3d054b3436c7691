"""What each `unicom` command does with its flags. Imports of jax happen inside, so that `--help`
answers at once."""

from __future__ import annotations

import argparse
import contextlib
import os
import pkgutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from unicom_jax.core.paths import as_path
from unicom_jax.runs.lock import workdir_lock


def run(args: argparse.Namespace) -> None:
    """Runs the command that the flags ask for."""
    COMMANDS[" ".join(filter(None, (args.command, getattr(args, "action", None))))](args)


def _call(name: str, args: argparse.Namespace) -> None:
    """A command that is one function `module:function` of (flags, console)."""
    pkgutil.resolve_name(name)(args, _console())


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


def _evaluate(args: argparse.Namespace) -> None:
    from unicom_jax.evaluation.command import run_evaluate

    names = ("step", "split", "baseline", "suites", "best_of")
    choice = {name: getattr(args, name) for name in names}
    run_evaluate(as_path(args.workdir), _console(), **choice)


def _report(args: argparse.Namespace) -> None:
    from unicom_jax.evaluation.report import write_report

    path = write_report(as_path(args.workdir))
    _console().print(f"report: {path}")


def _export(args: argparse.Namespace) -> None:
    from unicom_jax.exchange.export import export, read_size
    from unicom_jax.exchange.written import Options
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


def _explain(args: argparse.Namespace) -> None:
    from unicom_jax.config.explain import explain

    _console().print(explain(args.key))


def _prepare(args: argparse.Namespace) -> None:
    from data_pipelines.preparation.prepare import prepare
    from unicom_jax.runs.lock import workdir_lock
    from unicom_jax.runs.packed import check_flags, engine_of, prepare_packed
    from unicom_jax.runs.prepare_flags import FILES

    check_flags(args)
    out, engine = Path(args.out), engine_of(args)
    if args.dataset == "packed":
        line = prepare_packed(args, _console())
    elif args.dataset in FILES:
        with workdir_lock(out):
            line = prepare(args.dataset, out, args.package, args.size, engine, args.max_broken)
    else:  # these write under a temporary name
        line = prepare(args.dataset, out, args.package, args.size)
    _console().print(line)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": _train,
    "plan": partial(_call, "unicom_jax.planning.command:run_plan"),
    "sample": partial(_call, "unicom_jax.inference.command:run_sample"),
    "evaluate": _evaluate,
    "report": _report,
    "sweep run": partial(_call, "unicom_jax.sweeps.command:run_sweep"),
    "sweep status": partial(_call, "unicom_jax.sweeps.command:print_status"),
    "sweep table": partial(_call, "unicom_jax.sweeps.command:print_table"),
    "sweep report": partial(_call, "unicom_jax.sweeps.command:run_report"),
    "compare": partial(_call, "unicom_jax.sweeps.command:run_compare"),
    "export": _export,
    "import": _import,
    "data show": _show,
    "data bench": partial(_call, "unicom_jax.runs.data_bench:run_bench"),
    "data prepare": _prepare,
    "config explain": _explain,
}
