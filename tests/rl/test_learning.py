"""By the real trainer: a captioner and a drawer find what is rewarded."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.loading.prompts import PromptBatch
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.runs.stages import START
from unicom_jax.training.assemble import make_trainer

ROWS, MOST = 4, 6
BY_LENGTH = {"rewards.length": 1.0, "least_tokens": 2, "most_tokens": 2, "learning_rate": 3e-3}
BY_BRIGHTNESS = {
    "rewards.own": 1.0,
    "own_reward": "tests.rl.own.brightness",
    "captions": "data",
    "learning_rate": 3e-3,
    "draw_steps": 4,
}


def curve(generator, setting, stage, steps, changes):
    """The reward at each step."""
    config = generator.config.copy_and_resolve_references()
    common = {"rewards.cosine": 0.0, "group_size": 8, "max_tokens": MOST, "kl_weight": 0.0}
    for name, value in {**common, "steps": steps, "weight_decay": 0.0, **changes}.items():
        *groups, last = f"{stage}.{name}".split(".")
        node = config
        for group in groups:
            node = node[group]
        node[last] = value
    trainer = make_trainer(stage, config, make_mesh(), lambda: iter(()), generator.tokenizer)
    frozen = {**generator.params, START: generator.params["unified"]}
    state = trainer.init_state(jax.tree.map(jnp.copy, frozen[START]))
    prepare, update = trainer.prepare_step(), trainer.train_step()
    batch = PromptBatch(
        patches=np.tile(setting.patches, (ROWS // 2, 1, 1)),
        grids=np.full((ROWS, 2), 2, np.int32),
        captions=np.full((ROWS, MOST), 280, np.int32),
        questions=np.zeros((ROWS, 0), np.int32),
        answers=np.zeros((ROWS, 0), np.int32),
        number=np.zeros(ROWS, np.int32),
    )
    found = []
    for _ in range(steps):
        state, metrics = update(state, frozen, prepare(state, frozen, batch))
        found.append(metrics["loss/reward"])
    return np.asarray(found)


def test_a_captioner_learns_to_write_captions_of_the_rewarded_length(generator, setting):
    found = curve(generator, setting, "g4u", 30, BY_LENGTH)
    assert found[:5].mean() < 0.1 and found[-5:].mean() > 0.5


@pytest.mark.parametrize(
    "objective",
    [
        "nft",
        pytest.param("awm", marks=pytest.mark.slow),
        pytest.param("grpo", marks=pytest.mark.slow),
    ],
)
def test_a_drawer_learns_to_draw_what_is_rewarded(generator, setting, objective):
    changes = {**BY_BRIGHTNESS, "objective": objective}
    found = curve(generator, setting, "u4g", 30, changes)
    assert found[-5:].mean() > found[:5].mean() + 0.02
