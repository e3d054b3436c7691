"""Configurations of reinforcement learning fit the run whose weights they take, as do their
controls."""

from __future__ import annotations

import re

import pytest

from experiments import quickstart, scenes_base, uae_base, uae_quick
from unicom_jax.config import resolve
from unicom_jax.config.check import check_settings
from unicom_jax.families.build import build_codec, build_encoder, build_unified
from unicom_jax.runs.origin import origins

PAIRS = [(uae_quick, quickstart), (uae_base, scenes_base)]
# The flags of each command or control of a docstring: a paragraph of indented lines.
VARIANTS = [
    (file, re.findall(r"--config\.\S+=\S*", paragraph))
    for file, _ in PAIRS
    for paragraph in re.split(r"\n\n", file.__doc__)
    if re.match(r" {4}--config\.", paragraph)
]


@pytest.mark.parametrize(("file", "base"), PAIRS, ids=("uae_quick", "uae_base"))
def test_its_first_stage_takes_the_bases_weights_and_its_modules_are_the_same(file, base):
    config, base = file.get_config(), base.get_config()
    check_settings(config, config.stages)
    (origin,) = origins(config)
    assert origin.stage.name == config.stages[0] and origin.source.name == base.stages[-1]
    for build in (build_encoder, build_codec, build_unified):
        assert build(config) == build(base)


@pytest.mark.parametrize(("file", "flags"), VARIANTS)
def test_its_controls_start_from_the_same_weights(file, flags):
    config = resolve(file.__file__, flags)
    check_settings(config, config.stages)
    (origin,) = origins(config)
    assert origin.stage.name == config.stages[0]
    (usual,) = origins(file.get_config())
    assert (origin.workdir, origin.source) == (usual.workdir, usual.source)


def test_the_docstrings_have_controls():
    assert {file for file, _ in VARIANTS} == {file for file, _ in PAIRS}
    assert len(VARIANTS) >= 8
