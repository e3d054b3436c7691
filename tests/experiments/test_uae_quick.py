"""`experiments/uae_quick.py` fits the quickstart whose weights it takes, and so do its controls."""

from __future__ import annotations

import re

import pytest

from experiments import quickstart, uae_quick
from unicom_jax.config import resolve
from unicom_jax.config.check import check_settings
from unicom_jax.families.build import build_codec, build_encoder, build_unified
from unicom_jax.runs.origin import origins

# The flags of each command or control of the docstring: a paragraph of indented lines.
VARIANTS = [
    re.findall(r"--config\.\S+=\S*", paragraph)
    for paragraph in re.split(r"\n\n", uae_quick.__doc__)
    if re.match(r" {4}--config\.", paragraph)
]


def test_its_first_stage_takes_the_quickstarts_weights_and_its_modules_are_the_same():
    config, base = uae_quick.get_config(), quickstart.get_config()
    check_settings(config, config.stages)
    (origin,) = origins(config)
    assert origin.stage.name == config.stages[0] and origin.source.name == base.stages[-1]
    for build in (build_encoder, build_codec, build_unified):
        assert build(config) == build(base)


@pytest.mark.parametrize("flags", VARIANTS, ids=lambda flags: flags[0])
def test_its_controls_start_from_the_same_weights(flags):
    config = resolve(uae_quick.__file__, flags)
    check_settings(config, config.stages)
    (origin,) = origins(config)
    assert origin.stage.name == config.stages[0]
    (usual,) = origins(uae_quick.get_config())
    assert (origin.workdir, origin.source) == (usual.workdir, usual.source)


def test_the_docstring_has_controls():
    assert len(VARIANTS) >= 4
