"""The small generator of the tests of inference, and what rollouts need around it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import pytest

from data_pipelines.images import patchify
from data_pipelines.loading.prompts import PromptBatch
from tests.data.samples import picture
from tests.inference import conftest
from unicom_jax.rl.template import Template, make_template
from unicom_jax.runs.stages import START

generator = conftest.generator
PROMPT = "how many dots are there?"
GROUP, MOST = 3, 5  # samples of a picture, and tokens of a caption


@dataclasses.dataclass(frozen=True)
class Setting:
    """Two pictures, the template of a caption of them, and the models and weights."""

    models: Any
    params: Any
    template: Template
    pictures: list
    patches: Any
    grids: Any


@pytest.fixture(scope="session")
def setting(generator) -> Setting:
    pictures = [picture(seed, 32, 32) for seed in range(2)]
    return Setting(
        models=generator.models,
        params=generator.params,
        template=make_template(generator.config, generator.tokenizer, PROMPT),
        pictures=pictures,
        patches=jnp.stack([patchify(one, 16) for one in pictures]),
        grids=jnp.full((2, 2), 2),
    )


@pytest.fixture(scope="session")
def made(generator, setting):
    """(stage, frozen trees, batch) of a stage with the given settings."""

    def make(build, stage, **changes):
        config = generator.config.copy_and_resolve_references()
        config[stage].update({"group_size": GROUP, "max_tokens": MOST, "draw_steps": 4})
        with config.unlocked():
            rewards = changes.pop("rewards")
            config[stage].rewards.update(dict.fromkeys(config[stage].rewards, 0.0) | rewards)
            config[stage].update(changes)
        frozen = {**generator.params, START: generator.params["unified"]}
        batch = PromptBatch(
            patches=setting.patches,
            grids=setting.grids,
            captions=jnp.full((2, MOST), -1).at[:, 0].set(280),
            questions=jnp.zeros((2, 0), int),
            answers=jnp.zeros((2, 0), int),
            number=jnp.zeros(2, int),
        )
        return build(stage, config, generator.tokenizer), frozen, batch

    return make
