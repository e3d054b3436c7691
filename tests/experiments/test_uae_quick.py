"""`experiments/uae_quick.py` fits the quickstart whose weights it takes."""

from __future__ import annotations

from experiments import quickstart, uae_quick
from unicom_jax.config.check import check_settings
from unicom_jax.families.build import build_codec, build_encoder, build_unified
from unicom_jax.runs.origin import origins


def test_its_first_stage_takes_the_quickstarts_weights_and_its_modules_are_the_same():
    config, base = uae_quick.get_config(), quickstart.get_config()
    check_settings(config, config.stages)
    (origin,) = origins(config)
    assert origin.stage.name == config.stages[0] and origin.source.name == base.stages[-1]
    for build in (build_encoder, build_codec, build_unified):
        assert build(config) == build(base)
