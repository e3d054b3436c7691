"""What training does on meshes of eight CPU devices, as JSON: {mesh: facts}.

    python -m tests.training.eight_devices MESH...

In a process of its own, as the number of devices is fixed when JAX starts.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from experiments import base
from experiments.benchmarks.muon import LEARNING_RATE, compiled_update, contestants, traffic
from unicom_jax.core.layers import Linear
from unicom_jax.core.module import Module, ParamSpec, stack_specs
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.sharding import param_shardings
from unicom_jax.training.optimizers import make_optimizer
from unicom_jax.training.step import Stage, Trainer

UP = Linear(16, 32, axes=("embed", "mlp"))
DOWN = Linear(32, 16, axes=("mlp", "embed"))
MIX = Linear(16, 16, bias=False, axes=("heads", "embed"))
READ = Linear(16, 8, axes=("embed", None))
ODD = Linear(8, 5, axes=("features", "latent"))  # no mesh splits it


@dataclasses.dataclass(frozen=True)
class Tower(Module):
    """Row numbers (B,) -> (B, 5). Three layers, which eight devices do not divide."""

    def specs(self):
        blocks = {"up": UP.specs(), "down": DOWN.specs(), "mix": MIX.specs()}
        return {
            "table": {"table": ParamSpec((24, 16), ("vocab", "embed"))},
            "blocks": stack_specs(blocks, 3),
            "read": READ.specs(),
            "odd": ODD.specs(),
        }

    def __call__(self, params, rows):
        def block(x, layer):
            x = x + DOWN(layer["down"], jnp.tanh(UP(layer["up"], x)))
            return x + MIX(layer["mix"], x), None

        x = jax.lax.scan(block, params["table"]["table"][rows], params["blocks"])[0]
        return ODD(params["odd"], READ(params["read"], x))


def toy_stage() -> Stage:
    def loss(params, frozen, batch, keys):
        error = jnp.square(Tower()(params, batch["rows"]) - batch["wanted"]).sum(-1)
        return {"main": (error.sum(), jnp.float32(error.size))}

    return Stage("toy", Tower(), loss, {"main": 1.0})


def make_trainer(mesh: jax.sharding.Mesh, **options) -> Trainer:
    settings = base.training(warmup_steps=1, learning_rate=0.01, optimizer="muon")
    made, schedule = make_optimizer(settings, Tower().specs(), 100)
    return Trainer(toy_stage(), made, schedule, mesh, seed=3, ema_decay=0.9, **options)


def trained(trainer: Trainer, steps: int = 2):
    rng = np.random.default_rng(0)
    batch = {
        "rows": rng.integers(0, 24, 16).astype(np.int32),
        "wanted": rng.standard_normal((16, 5)).astype(np.float32),
    }
    state, step = trainer.init_state(), trainer.train_step()
    for _ in range(steps):
        state, _ = step(state, {}, batch)
    return state


def farthest(one, other) -> float:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max()) for a, b in pairs)


def misplaced(trainer: Trainer, state) -> list[str]:
    """Moments and averages that are not sharded like their weights."""
    weights = param_shardings(Tower().specs(), trainer.mesh)
    places = traverse_util.flatten_dict(weights)
    wrong, seen = [], 0
    for path, leaf in jax.tree.leaves_with_path((state.opt_state, state.ema)):
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        place = next((places[names[i:]] for i in range(len(names)) if names[i:] in places), None)
        seen += place is not None and leaf.ndim > 0
        if place and leaf.ndim and not leaf.sharding.is_equivalent_to(place, leaf.ndim):
            wrong.append(jax.tree_util.keystr(path))
    assert seen >= 2 * len(places), seen
    return wrong


def not_on_host(state) -> list[str]:
    """Moments that are on the device."""
    return [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree.leaves_with_path(state.opt_state)
        if leaf.ndim and leaf.sharding.memory_kind != "pinned_host"
    ]


def updates(optimizer, mesh: jax.sharding.Mesh) -> tuple[list, dict]:
    """Two updates, and what is sent for one."""
    program = compiled_update(optimizer, Tower(), mesh)
    in_grads, in_state = program.input_shardings[0]
    rng, shapes = np.random.default_rng(1), Tower().abstract()
    weights = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    state, found = jax.jit(optimizer.init, out_shardings=in_state)(weights), []
    for _ in range(2):
        grads = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)
        update, state = program(jax.device_put(grads, in_grads), state)
        found.append(jax.device_get(update))
    sent = {kind: dataclasses.asdict(of) for kind, of in traffic(program, mesh).items()}
    return found, sent


def all_facts(meshes: list[str]) -> dict:
    one = make_mesh("", jax.devices()[:1])
    ours, theirs = contestants(Tower().specs()).values()
    wanted_weights, (wanted_updates, _) = trained(make_trainer(one)).params, updates(theirs, one)
    facts = {}
    for text in meshes:
        mesh = make_mesh(text)
        trainer = make_trainer(mesh)
        state = trained(trainer)
        found, sent = updates(ours, mesh)
        facts[text] = {
            "misplaced": misplaced(trainer, state),
            "weights_from_one_device": farthest(state.params, wanted_weights),
            "updates_from_optax": farthest(found, wanted_updates) / LEARNING_RATE,
            "sent": sent,
        }
        if text == meshes[0]:
            offloaded = trained(make_trainer(mesh, offload_optimizer=True))
            facts[text]["not_on_host"] = not_on_host(offloaded)
            facts[text]["state_from_offloaded"] = farthest(state, offloaded)
    return facts


if __name__ == "__main__":
    print(json.dumps(all_facts(sys.argv[1:])))
