"""The train step of a stage on this machine's devices, against what `unicom plan` says of it.

    python -m experiments.benchmarks.step --config=experiments/cheers_1_5b.py --stage=pretrain
        --config.mesh= --config.pretrain.batch_size=8 [--rounds=20] [--keep=FOLDER]

Needs neither weights nor data: weights are random, and if the configuration's data cannot be read,
rows are packed from Scenes. The step is the one that a run compiles, for a batch of this many rows;
it is given two batches in turn, already on the device. Stages that sample (g4u, u4g, jointly) are
refused, as by `unicom plan`. MFU counts the operations that the loss needs, with the share of
visible pairs that `unicom plan` finds in such rows. "All overlaps" and "nothing does" are the
bounds of `unicom plan` from the text of the same program. Data preparation and host transfers are
not in the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from data_pipelines.build import load_or_train_tokenizer
from experiments.benchmarks.race import Spread
from unicom_jax.config import ConfigError, resolve
from unicom_jax.config.check import check_settings
from unicom_jax.core.module import init_params
from unicom_jax.models.transformer import ROW_ATTENTION
from unicom_jax.parallel.accelerators import find_accelerator
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.plan.costs import count_costs
from unicom_jax.parallel.plan.hlo import parse_program
from unicom_jax.parallel.plan.roofline import TERMS, Roofline, make_roofline
from unicom_jax.parallel.plan.topology import parse_topology
from unicom_jax.parallel.plan.traffic import fabric_of
from unicom_jax.parallel.sharding import place_batch
from unicom_jax.parallel.xla_flags import set_flags
from unicom_jax.planning.packed import UNREADABLE, Visible, stand_in, visible_pairs
from unicom_jax.planning.plan import shares_of
from unicom_jax.planning.program import (
    StepProgram,
    assume_flux,
    make_program,
    weight_sizes,
)
from unicom_jax.runs.loading import stage_loader
from unicom_jax.runs.stages import spec_of
from unicom_jax.training.flops import flops_by_shares

GIB = 2**30
WARMUP = 3


def some_batches(config: ConfigDict, stage: str, number: int) -> tuple[list, str]:
    """Batches of the stage's own data, or of Scenes; and a word about them."""

    def read(config: ConfigDict) -> list:
        config = config.copy_and_resolve_references()
        config.data.update({"workers": 0, "threads": 1, "prefetch": 1})
        loader = stage_loader(config, stage, load_or_train_tokenizer(config, None))
        try:
            return [next(loader) for _ in range(number)]
        finally:
            loader.close()

    try:
        return read(config), "its own data"
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        return read(stand_in(config, stage)), f"Scenes in place of its data ({reason})"


def random_frozen(program: StepProgram):
    """Random weights for the parts that the stage reads and does not train."""
    places = jax.tree.map(lambda x: x.sharding, program.frozen)

    def make(key: jax.Array):
        return {part: init_params(specs, key) for part, specs in program.frozen_specs.items()}

    return jax.jit(make, out_shardings=places)(jax.random.key(1))


def timed(step, arguments, batches: list, rounds: int) -> tuple[Any, np.ndarray, list[float]]:
    """The last state, and each step's seconds (without the first ones) and loss."""
    state, frozen = arguments
    seconds, losses = [], []
    for turn in range(WARMUP + rounds):
        began = time.perf_counter()
        state, metrics = step(state, frozen, batches[turn % len(batches)])
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
        losses.append(float(metrics["loss"]))
    return state, np.array(seconds[WARMUP:]), losses


def bounds(program: StepProgram, text: str, mesh: Mesh, visible: Visible | None) -> Roofline | None:
    """As `unicom plan`: kernels in packed rows count with the blocks that have visible pairs."""
    accelerator = find_accelerator(jax.devices()[0].device_kind)
    if accelerator is None:
        return None
    topology = parse_topology(f"{accelerator.name}:{mesh.size}")
    costs = count_costs(parse_program(text), {ROW_ATTENTION: visible.blocks} if visible else {})
    return make_roofline(costs, fabric_of(topology, mesh, weight_sizes(program, mesh)))


@dataclasses.dataclass(frozen=True)
class Measured:
    """A step's times, and what its program says of it.

    Attributes:
      seconds: of each step, without the first ones.
      losses: of all steps.
      tokens: in a batch.
      operations: that the loss needs.
      memory: bytes of arguments, and of temporaries.
      bounds: None on hardware that `unicom plan` does not know.
      compilation: seconds.
    """

    seconds: np.ndarray
    losses: list[float]
    tokens: int
    operations: float
    memory: tuple[int, int]
    bounds: Roofline | None
    compilation: float


def measure(
    config: ConfigDict, stage: str, batches: list, rounds: int, keep: Path | None
) -> Measured:
    """Compiles and runs the step of a stage; `keep`: as the flag."""
    mesh = make_mesh(config.mesh)
    program = make_program(config, stage, mesh)
    arguments = (program.trainer.init_state(), random_frozen(program))
    batches = [place_batch(batch, mesh) for batch in batches]
    step, began = program.trainer.train_step(), time.perf_counter()
    compiled = step.lower(*arguments, batches[0]).compile()
    took = time.perf_counter() - began
    text, analysis = compiled.as_text(), compiled.memory_analysis()
    run, frozen = partial(compiled, step.key_data), arguments[1]
    state, seconds, losses = timed(run, arguments, batches, rounds)
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{stage}.hlo").write_text(text, encoding="utf-8")
        with jax.profiler.trace(keep):
            timed(run, (state, frozen), batches, rounds=0)
    visible = visible_pairs(config, stage) if spec_of(stage).loader == "rows" else None
    count = flops_by_shares(program.stage, frozen, batches[0])
    return Measured(
        seconds,
        losses,
        program.tokens,
        count(shares_of(visible)),
        (analysis.argument_size_in_bytes, analysis.temp_size_in_bytes),
        bounds(program, text, mesh, visible),
        took,
    )


def result_table(title: str, found: Measured) -> Table:
    seconds = Spread.of(found.seconds)
    table = Table(title=title, show_header=False)
    table.add_row(
        "step, seconds: median \\[quartiles]",
        f"{seconds.median:.4f} \\[{seconds.low:.4f}, {seconds.high:.4f}]",
    )
    table.add_row("tokens per second", f"{found.tokens / seconds.median:,.0f}")
    table.add_row("operations of the loss", f"{found.operations / 1e12:.2f} T")
    accelerator = find_accelerator(jax.devices()[0].device_kind)
    if accelerator and (roofline := found.bounds):
        peak = accelerator.flops * jax.device_count()
        table.add_row("MFU", f"{found.operations / seconds.median / peak:.1%}")
        table.add_row(
            "plan: all overlaps - nothing does",
            f"{roofline.overlapped:.4f} - {roofline.in_turn:.4f} s",
        )
        terms = " / ".join(f"{name} {value:.4f}" for name, value in roofline.terms.items())
        table.add_row(f"plan: {len(TERMS)} terms, seconds", terms)
        for module in roofline.modules[:8]:
            parts = " / ".join(f"{x:.4f}" for x in module.seconds[:2])
            table.add_row(f"  {module.name or 'the rest'}", parts)
    memory = " + ".join(f"{size / GIB:.1f}" for size in found.memory)
    table.add_row("memory: arguments, temporaries, GiB", memory)
    table.add_row("loss: first, last", f"{found.losses[0]:.4f}, {found.losses[-1]:.4f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.step")
    parser.add_argument("--config", required=True)
    parser.add_argument("--stage", required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--keep", type=Path, help="folder for the compiled program's text and a profile of 3 steps"
    )
    options, overrides = parser.parse_known_args()
    load, stage = os.getloadavg()[0], options.stage
    try:
        config = resolve(options.config, overrides)
        check_settings(config, (stage,))
        set_flags(config.xla_flags)
        assume_flux(config)
        batches, data = some_batches(config, stage, 2)
        found = measure(config, stage, batches, options.rounds, options.keep)
    except (ConfigError, OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    console = Console()
    console.width = max(console.width, 120)
    title = f"{options.config}, {stage}: {config[stage].batch_size} rows of {data}"
    console.print(result_table(title, found))
    console.print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}; compiled in "
        f"{found.compilation:.0f} s; load average before the start {load:.1f}"
    )


if __name__ == "__main__":
    main()
