"""Trains stages of the tiny configuration on eight devices, and says what became of them.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.parallel.eight \\
        '[{"stage": "codec", "mesh": "fsdp=2,context=2,tensor=2", "steps": 20}]'

A case is `stage`, `mesh` ("" for one device), `steps`, and overrides of `tests.tiny.tiny_config`.
Prints one line of JSON a case: `losses`; `compilations`; `moved`: weights and moments that do not
are where they were before; `bytes`: what the fullest device holds, by part of the state.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import numpy as np

from tests.data.samples import tokenizer
from tests.tiny import tiny_config
from unicom_jax.core.module import Module
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.sharding import param_shardings, place_batch
from unicom_jax.runs.loading import stage_loader
from unicom_jax.runs.stages import PARTS, spec_of
from unicom_jax.training.assemble import make_trainer


def frozen_parts(name: str, config: Any, mesh: Any) -> dict:
    def fresh(module: Module) -> Any:
        places = param_shardings(module.specs(), mesh)
        return jax.jit(module.init, out_shardings=places)(jax.random.key(7))

    return {
        key: fresh(subtree.module_of(PARTS[subtree.part].build(config)))
        for key, subtree in spec_of(name).reads(config).items()
    }


def fullest_device(tree: Any) -> int:
    held: dict[int, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    return max(held.values(), default=0)


def run(stage: str, mesh: str, steps: int, **overrides: Any) -> dict[str, Any]:
    config = tiny_config(**{f"{stage}__batch_size": 8, f"{stage}__steps": steps, **overrides})
    devices = make_mesh(mesh) if mesh else make_mesh(devices=jax.devices()[:1])
    trainer = make_trainer(stage, config, devices, lambda: iter(()))
    frozen = frozen_parts(stage, config, devices)
    state, step = trainer.init_state(), trainer.train_step()
    before = [leaf.sharding for leaf in jax.tree.leaves(state)]
    losses = []
    batches = stage_loader(config, stage, tokenizer())
    for _ in range(steps):
        state, metrics = step(state, frozen, place_batch(next(batches), devices))
        losses.append(float(metrics["loss"]))
    batches.close()
    leaves = jax.tree.leaves(state)
    moved = [
        not leaf.sharding.is_equivalent_to(place, leaf.ndim)
        for leaf, place in zip(leaves, before, strict=True)
    ]
    parts = {"params": state.params, "opt_state": state.opt_state, "ema": state.ema}
    return {
        "losses": losses,
        "compilations": step.compilations(),
        "moved": int(np.sum(moved)),
        "bytes": {name: fullest_device(part) for name, part in parts.items()},
    }


def main() -> None:
    for case in json.loads(sys.argv[1]):
        print(json.dumps(run(**case)), flush=True)


if __name__ == "__main__":
    main()
