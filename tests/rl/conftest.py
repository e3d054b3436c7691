"""The small generator of the tests of inference, and what rollouts need around it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import pytest

from data_pipelines.images import patchify
from tests.data.samples import picture
from tests.inference import conftest
from unicom_jax.rl.template import Template, make_template

generator = conftest.generator
PROMPT = "how many dots are there?"


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
