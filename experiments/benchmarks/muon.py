"""Our Muon and optax's: communication between devices, memory, and time.

    python -m experiments.benchmarks.muon [--size=qwen2.5-7b] [--mesh=fsdp=4,tensor=2] [--rounds=12]

Compiles the update of a language model of published size for eight CPU devices, weights, gradients
and moments sharded as in training, and reads the program; nothing of that size runs. Then times
both on one device, in turns, for the quickstart's transformer. docs/optimizer.md has the tables.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict

import jax
import optax
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.race import Contestant, Spread, race, ratios
from unicom_jax.core.module import Module, ParamSpec, Specs, map_specs
from unicom_jax.models.transformer import TRANSFORMER_SIZES, Transformer
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.plan.costs import count_costs
from unicom_jax.parallel.plan.hlo import parse_program
from unicom_jax.parallel.plan.topology import parse_topology
from unicom_jax.parallel.plan.traffic import fabric_of, price
from unicom_jax.parallel.sharding import optimizer_shardings, param_shardings
from unicom_jax.training.muon import RMS, is_kernel, muon

DEVICES = 8
MIB = 2**20
SMALL = Transformer(
    vocab_size=512, width=192, depth=6, heads=6, kv_heads=2, head_dim=32, mlp_dim=512
)
LEARNING_RATE = 1e-3
SETTINGS = {"b1": 0.9, "b2": 0.95, "eps": 1e-6}


def optax_muon(specs: Specs) -> optax.GradientTransformationExtraArgs:
    """The same update from optax alone."""

    def dimensions(spec: ParamSpec) -> optax.contrib.MuonDimensionNumbers | None:
        sides = [i for i, axis in enumerate(spec.axes) if axis != "layers"]
        return optax.contrib.MuonDimensionNumbers(*sides) if is_kernel(spec) else None

    update = optax.contrib.muon(
        LEARNING_RATE,
        eps=SETTINGS["eps"],
        adam_b1=SETTINGS["b1"],
        adam_b2=SETTINGS["b2"],
        muon_weight_dimension_numbers=map_specs(dimensions, specs),
        consistent_rms=RMS,
    )
    return optax.with_extra_args_support(update)


def contestants(specs: Specs) -> dict[str, optax.GradientTransformationExtraArgs]:
    return {
        "unicom_jax": muon(LEARNING_RATE, specs, **SETTINGS),
        "optax.contrib.muon": optax_muon(specs),
    }


def compiled_update(optimizer, module: Module, mesh) -> jax.stages.Compiled:
    """(gradients, state) -> (updates, state), the state donated."""
    weights = param_shardings(module.specs(), mesh)
    state = jax.eval_shape(optimizer.init, module.abstract())
    moments = optimizer_shardings(state, weights, mesh)

    def update(grads, state):
        return optimizer.update(grads, state, grads, mesh=mesh)

    jitted = jax.jit(
        update,
        in_shardings=(weights, moments),
        out_shardings=(weights, moments),
        donate_argnums=1,
    )
    return jitted.lower(module.abstract(), state).compile()


@dataclasses.dataclass
class Traffic:
    """Collectives of one kind: how often they run, and the bytes that a device receives."""

    count: int = 0
    received: float = 0.0


def traffic(program: jax.stages.Compiled, mesh: Mesh) -> dict[str, Traffic]:
    """Collectives by kind of a program compiled for the CPU devices of a mesh."""
    fabric = fabric_of(parse_topology(f"cpu:{mesh.size}"), mesh)
    found: dict[str, Traffic] = defaultdict(Traffic)
    for _, collective in count_costs(parse_program(program.as_text())).collectives:
        for exchange in price(collective, fabric):
            found[exchange.kind].count += exchange.count
            found[exchange.kind].received += exchange.near
    return dict(found)


def program_table(size: str, mesh_text: str) -> Table:
    module, mesh = TRANSFORMER_SIZES[size](), make_mesh(mesh_text)
    held = 4 * module.param_count() / mesh.size / MIB
    table = Table(
        title=f"{size} on {mesh_text}; a device's share of the weights is {held:,.0f} MiB"
    )
    for column in ("", "collectives", "received a step, MiB", "temporaries, MiB"):
        table.add_column(column, justify="right" if column else "left")
    for name, optimizer in contestants(module.specs()).items():
        program = compiled_update(optimizer, module, mesh)
        kinds = traffic(program, mesh)
        table.add_row(
            name,
            ", ".join(f"{kind.count} {name}" for name, kind in sorted(kinds.items())),
            f"{sum(kind.received for kind in kinds.values()) / MIB:,.0f}",
            f"{program.memory_analysis().temp_size_in_bytes / MIB:,.0f}",
        )
    return table


def time_table(rounds: int) -> Table:
    mesh, params = make_mesh("fsdp=1", jax.devices()[:1]), SMALL.init(jax.random.key(0))
    runners = []
    for name, optimizer in contestants(SMALL.specs()).items():
        program = compiled_update(optimizer, SMALL, mesh)
        state = [optimizer.init(params)]

        def step(program=program, state=state) -> None:
            updates, state[0] = jax.block_until_ready(program(params, state[0]))

        runners.append(Contestant(name, step, SMALL.param_count()))
    seconds = race(runners, rounds)
    table = Table(
        title=f"One device, {SMALL.param_count() / 1e6:.1f} M weights, median of {rounds}"
    )
    for column in ("", "ms an update", "ours ÷ this"):
        table.add_column(column, justify="right" if column else "left")
    for runner, column, ratio in zip(runners, seconds.T, ratios(seconds), strict=True):
        table.add_row(
            runner.name,
            f"{Spread.of(column * 1e3).median:.1f}",
            f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=TRANSFORMER_SIZES, default="qwen2.5-0.5b")
    parser.add_argument("--mesh", default="fsdp=4,tensor=2", help="of eight devices")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    console = Console(width=124)
    console.print(program_table(options.size, options.mesh))
    console.print(time_table(options.rounds))


if __name__ == "__main__":
    main()
