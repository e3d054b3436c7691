"""What `unicom plan` does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from unicom_jax.config import ConfigError, resolve
from unicom_jax.config.check import check_settings
from unicom_jax.parallel.plan.topology import Topology, missing_compiler, parse_topology
from unicom_jax.parallel.xla_flags import OFF, add_flags, describe_flags
from unicom_jax.planning.estimate import estimate_stage
from unicom_jax.planning.plan import GIB, StagePlan, plan_stage
from unicom_jax.planning.plan_flags import COMPILED
from unicom_jax.planning.program import assume_flux
from unicom_jax.planning.sampling import SAMPLE, SamplePlan, plan_sampling
from unicom_jax.planning.search import nearest_fit, search
from unicom_jax.planning.table import (
    exchange_table,
    module_table,
    parameter_line,
    plan_table,
    sample_table,
    search_table,
    visible_line,
)
from unicom_jax.runs.stages import STAGES


class DoesNotFit(Exception):
    """A stage needs more memory than a device has. The message names settings that should fit."""


def run_plan(args: argparse.Namespace, console: Console) -> None:
    """Prints the plan of `args` (`planning/plan_flags.py`).

    Raises:
      ConfigError: an unknown stage or key, or an impossible setting.
      ValueError: an impossible topology, or a mesh or batch that does not divide over it.
      DoesNotFit: a stage needs more memory than a device has.
    """
    jax.config.update("jax_platforms", "cpu")  # leaves this machine's accelerators free
    topology = parse_topology(args.topology, args.slices)
    _check_flags(args, topology)
    config = resolve(args.config, args.overrides)
    # A repeated stage gets one plan.
    stages = tuple(dict.fromkeys(args.stage.split(",") if args.stage else config.stages))
    for name in stages:
        if name not in (*STAGES, SAMPLE):
            raise ConfigError(
                f"--stage={name} is unknown; stages are {', '.join((*STAGES, SAMPLE))}"
            )
    stages, samples = tuple(name for name in stages if name != SAMPLE), SAMPLE in stages
    unplanned = () if args.stage else tuple(name for name in stages if STAGES[name].samples)
    stages = tuple(name for name in stages if name not in unplanned)
    check_settings(config, stages)
    if samples and (args.search or args.estimate or missing_compiler(topology)):
        needs = missing_compiler(topology) or "no --search and no --estimate"
        raise ConfigError(f"--stage={SAMPLE} can only be planned by compiling; it needs {needs}")
    notes = (
        assume_flux(config),
        _about_packed(config),
        _about_compiler(topology, args.estimate),
        f"{' and '.join(unplanned)}: stages that sample texts are not planned" * bool(unplanned),
    )
    for note in filter(None, notes):
        console.print(f"! {note}", markup=False, soft_wrap=True)
    if args.search:
        compiled = COMPILED if args.compile is None else args.compile
        best = 0 if args.estimate else compiled
        _search(config, stages, topology, best, args.quick, console)
        return
    keep = Path(args.keep) if args.keep else None
    compiles = not (args.estimate or missing_compiler(topology))
    make = partial(plan_stage, keep=keep, quick=args.quick) if compiles else estimate_stage
    if compiles and config.xla_flags != OFF and (entry := topology.accelerator):
        add_flags(entry)
    plans = []
    for name in stages:
        with console.status(f"{name}: planning for {topology}"):
            plans.append(make(config, name, topology))
    if plans:
        _show(plans, console)
    if compiles and (line := describe_flags(topology.accelerator, config.xla_flags)):
        console.print(line, markup=False, soft_wrap=True)
    if samples:
        with console.status(f"{SAMPLE}: planning for {topology}"):
            drawn = plan_sampling(config, topology, keep, args.quick)
        console.print(sample_table(drawn))
    _check_fit(config, plans)
    if samples:
        _check_sampling(drawn)


def _check_flags(args: argparse.Namespace, topology: Topology) -> None:
    """Refuses flags that would do nothing."""
    for flag, others in (("keep", ("search", "estimate")), ("compile", ("estimate",))):
        for other in others:
            if getattr(args, flag) is not None and getattr(args, other):
                raise ConfigError(f"--{flag} does nothing with --{other}; leave one of them out")
    if args.compile is not None and not args.search:
        raise ConfigError("--compile does nothing without --search; leave it out")
    if args.compile is not None and args.compile < 0:
        raise ConfigError(f"--compile={args.compile}: give at least 0")
    if args.keep is not None and (missing := missing_compiler(topology)):
        raise ConfigError(f"--keep writes compiled programs, and compiling needs {missing}")
    if args.quick and args.estimate:
        raise ConfigError("--quick does nothing with --estimate; leave one of them out")
    needs = missing_compiler(topology) if topology.is_tpu else "a TPU for --topology"
    if args.quick and needs:
        raise ConfigError(f"--quick compiles TPU programs with little effort; it needs {needs}")


def _about_packed(config: ConfigDict) -> str:
    if not (packed := config.data.packed):
        return ""
    return f"features in data.packed={packed} do not count: planned with pictures to be encoded"


def _about_compiler(topology: Topology, estimate: bool) -> str:
    missing = missing_compiler(topology)
    return f"an estimate; a real plan needs {missing}" if missing and not estimate else ""


def _show(plans: Sequence[StagePlan], console: Console) -> None:
    console.print(plan_table(plans))
    for plan in plans:
        console.print(parameter_line(plan), markup=False)
        if line := visible_line(plan):
            console.print(line, markup=False, soft_wrap=True)
    for plan in plans:
        if plan.roofline and plan.roofline.modules:
            console.print(module_table(plan))
        if plan.roofline and plan.roofline.exchanges:
            console.print(exchange_table(plan))
        for warning in plan.warnings:
            console.print(f"! {plan.stage}: {warning}", markup=False, soft_wrap=True)
        if plan.unknown_loops:
            console.print(
                f"! {plan.stage}: {plan.unknown_loops} loops of unknown length count once"
            )


def _search(
    config: ConfigDict,
    stages: Sequence[str],
    topology: Topology,
    best: int,
    quick: bool,
    console: Console,
) -> None:
    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    for name in stages:
        settings = search(config, name, topology, best, say, quick=quick)
        if not settings:
            raise ConfigError(
                f"no mesh of {topology} divides {name}.batch_size={config[name].batch_size}; "
                f"give a batch_size with more factors of two"
            )
        console.print(search_table(name, settings))
        if line := visible_line(settings[0].plan):
            say(line)
        say(f"best: {settings[0].flags}")


def _needs(plan: StagePlan | SamplePlan) -> str:
    needed = f"{plan.peak / GIB:.0f} GiB" if plan.peak else "more"
    return f"{needed} of a device's {plan.topology.capacity / GIB:.0f} GiB"


def _check_sampling(plans: Sequence[SamplePlan]) -> None:
    """Raises DoesNotFit for the first program that needs too much."""
    for plan in plans:
        if not plan.fits:
            raise DoesNotFit(
                f"{SAMPLE}: {plan.name} needs {_needs(plan)}; "
                "generation runs on one device, so take one with more memory"
            )


def _check_fit(config: ConfigDict, plans: Sequence[StagePlan]) -> None:
    """Raises DoesNotFit for the first plan that needs too much."""
    for plan in plans:
        if plan.fits:
            continue
        smaller = nearest_fit(config, plan)
        hint = (
            f"{smaller.flags} should fit (estimated at {smaller.plan.peak / GIB:.0f} GiB)"
            if smaller
            else "no mesh, remat or accumulation makes it fit; use more devices"
        )
        raise DoesNotFit(f"{plan.stage} needs {_needs(plan)} on {plan.topology}; {hint}")
