"""A preparing stage on eight CPU devices, and on one of them, as JSON.

    python -m tests.training.preparing_devices

In a process of its own, as the number of devices is fixed when JAX starts.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np

from tests.training import test_prepare, test_step
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.sharding import place_batch


def trained(mesh: jax.sharding.Mesh) -> dict:
    trainer = dataclasses.replace(test_step.trainer(test_prepare.preparing()), mesh=mesh)
    prepare, step, state = trainer.prepare_step(), trainer.train_step(), trainer.init_state()
    for _ in range(2):
        made = prepare(state, {}, place_batch(test_step.batch(), mesh))
        for _ in range(2):
            state, metrics = step(state, {}, made)
    return {
        "loss": float(metrics["loss"]),
        "rows": {name: leaf.sharding.shard_shape(leaf.shape)[0] for name, leaf in made.items()},
        "targets": np.asarray(made["y"]).tolist(),
        "compilations": [prepare.compilations(), step.compilations()],
    }


if __name__ == "__main__":
    meshes = {"one": make_mesh("", jax.devices()[:1]), "eight": make_mesh("data=2,fsdp=4")}
    print(json.dumps({name: trained(mesh) for name, mesh in meshes.items()}))
