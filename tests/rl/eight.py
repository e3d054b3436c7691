"""A captioner's step on eight CPU devices, and on one of them, as JSON.

    python -m tests.rl.eight STAGE

In a process of its own, as the number of devices is fixed when JAX starts.
"""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.loading.prompts import PromptBatch
from tests.data.samples import tokenizer
from tests.families.documents import lively
from tests.tiny import tiny_config
from unicom_jax.families.build import build_codec, build_encoder, build_unified
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.sharding import param_shardings, place_batch
from unicom_jax.runs.stages import START
from unicom_jax.training.assemble import make_trainer

ROWS = 8


def settings():
    config = tiny_config(
        data__vocab_size=tokenizer().vocab_size,
        unified__transformer__tied_head=False,
        g4u__rewards__scenes=1.0,
        g4u__batch_size=ROWS,
        u4g__batch_size=ROWS,
        u4g__rewards__scenes=1.0,
    )
    return config


def stepped(stage: str, mesh: jax.sharding.Mesh) -> dict:
    config = settings()
    modules = {
        "vision": (build_encoder(config).vision, 1, 0.15),
        "codec": (build_codec(config), 2, 0.3),
        START: (build_unified(config), 3, 0.5),
    }
    placed = {
        name: jax.device_put(lively(module, seed, scale), param_shardings(module.specs(), mesh))
        for name, (module, seed, scale) in modules.items()
    }
    trainer = make_trainer(stage, config, mesh, lambda: iter(()), tokenizer())
    state = trainer.init_state(jax.tree.map(jnp.copy, placed[START]))
    rng = np.random.default_rng(0)
    batch = PromptBatch(
        patches=rng.integers(0, 256, (ROWS, 4, 768), dtype=np.uint8),
        grids=np.full((ROWS, 2), 2, np.int32),
        captions=np.full((ROWS, 6), -1, np.int32),
        questions=np.zeros((ROWS, 0), np.int32),
        answers=np.zeros((ROWS, 0), np.int32),
        number=np.zeros(ROWS, np.int32),
    )
    made = trainer.prepare_step()(state, placed, place_batch(batch, mesh))
    words = made.tokens if stage == "g4u" else made.words
    _, metrics = trainer.train_step()(state, placed, made)
    return {
        "words": np.asarray(words).tolist(),
        "rows": words.sharding.shard_shape(words.shape)[0],
        "metrics": {name: float(value) for name, value in metrics.items()},
    }


if __name__ == "__main__":
    meshes = {"one": make_mesh("", jax.devices()[:1]), "eight": make_mesh("data=2,fsdp=4")}
    print(json.dumps({name: stepped(sys.argv[1], mesh) for name, mesh in meshes.items()}))
