"""A step of a stage on eight CPU devices, and on one of them, as JSON.

    python -m tests.rl.eight STAGE

In a process of its own, as the number of devices is fixed when JAX starts.
"""

from __future__ import annotations

import contextlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.loading.prompts import PromptBatch
from tests.data.samples import tokenizer
from tests.families.documents import lively
from tests.tiny import tiny_config
from unicom_jax.config.schema import POLICY_STAGES, ROW_STAGES
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.sharding import param_shardings, place_batch
from unicom_jax.runs.loading import stage_loader
from unicom_jax.runs.stages import PARTS, STAGES, START
from unicom_jax.training.assemble import make_trainer

ROWS = 8
WORDS = {
    "g4u": lambda made: made.tokens,
    "u4g": lambda made: made.words,
    "joint": lambda made: made.captions.tokens,
}
SCALES = {"encoder": 0.15, "codec": 0.3, "unified": 0.5}  # of the random weights of a part


def settings():
    config = tiny_config(
        data__vocab_size=tokenizer().vocab_size, unified__transformer__tied_head=False
    )
    for stage in POLICY_STAGES:
        config[stage].batch_size, config[stage].rewards.scenes = ROWS, 1.0
    for stage in ROW_STAGES:
        config[stage].update({"batch_size": ROWS, "sequence_length": 256})
    return config


def batch_of(stage: str, config):
    if stage in ROW_STAGES:
        with contextlib.closing(stage_loader(config, stage, tokenizer())) as batches:
            return next(batches)
    rng = np.random.default_rng(0)
    return PromptBatch(
        patches=rng.integers(0, 256, (ROWS, 4, 768), dtype=np.uint8),
        grids=np.full((ROWS, 2), 2, np.int32),
        captions=np.full((ROWS, 6), -1, np.int32),
        questions=np.zeros((ROWS, 0), np.int32),
        answers=np.zeros((ROWS, 0), np.int32),
        number=np.zeros(ROWS, np.int32),
    )


def stepped(stage: str, mesh: jax.sharding.Mesh) -> dict:
    config = settings()
    wanted = {**STAGES[stage].reads(config), START: STAGES["u4g"].reads(config)[START]}
    placed = {}
    for number, (name, subtree) in enumerate(wanted.items()):
        whole = PARTS[subtree.part].build(config)
        weights = subtree.of(lively(whole, number, SCALES[subtree.part]))
        placed[name] = jax.device_put(weights, param_shardings(subtree.of(whole.specs()), mesh))
    trainer = make_trainer(stage, config, mesh, lambda: iter(()), tokenizer())
    state = trainer.init_state(jax.tree.map(jnp.copy, placed[START]))
    made = place_batch(batch_of(stage, config), mesh)
    found = {}
    if stage in POLICY_STAGES:
        made = trainer.prepare_step()(state, placed, made)
        words = WORDS[stage](made)
        found = {
            "words": np.asarray(words).tolist(),
            "rows": words.sharding.shard_shape(words.shape)[0],
        }
    _, metrics = trainer.train_step()(state, placed, made)
    return {**found, "metrics": {name: float(value) for name, value in metrics.items()}}


if __name__ == "__main__":
    meshes = {"one": make_mesh("", jax.devices()[:1]), "eight": make_mesh("data=2,fsdp=4")}
    print(json.dumps({name: stepped(sys.argv[1], mesh) for name, mesh in meshes.items()}))
