"""The sweeps about drawing: what their variants have in common, and what is equal in each pair."""

from __future__ import annotations

import functools
import math

import jax
import pytest
from ml_collections import ConfigDict

from experiments.sweeps import align, convergence, pathways
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.planning.program import make_program
from unicom_jax.runs.stages import spec_of
from unicom_jax.sweeps.addresses import addresses
from unicom_jax.sweeps.predict import flops_per_step
from unicom_jax.sweeps.sweep import variant_config
from unicom_jax.training.state import split

SWEEPS = {module.__name__.split(".")[-1]: module for module in (convergence, pathways, align)}


def config_of(sweep: str, variant: str) -> ConfigDict:
    return variant_config(SWEEPS[sweep].get_sweep(), variant, 0)


def address(sweep: str, variant: str, stage: str) -> str:
    found = {one.label: where for one, where in addresses(config_of(sweep, variant)).items()}
    return found[stage]


@functools.cache
def operations(sweep: str, variant: str) -> float:
    """Of the unified stages of a run."""
    config = config_of(sweep, variant)
    unified = [label for label in config.stages if label in ("align", "pretrain")]
    steps = {label: config[spec_of(label).name].steps for label in unified}
    return sum(steps[label] * flops_per_step(config, label) for label in unified)


def drawing_operations(variant: str) -> float:
    """Of the stage in which the pathways draw."""
    config = config_of("pathways", variant)
    return config.pretrain.steps * flops_per_step(config, "pretrain")


def trained_weights(variant: str) -> int:
    """Of that stage."""
    config = config_of("pathways", variant)
    stage = make_program(config, "pretrain", make_mesh(config.mesh)).stage
    trained, _ = split(stage.module.abstract(), stage.freeze)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained))


def test_all_three_share_the_encoder_and_the_codec_of_16_channels():
    runs = [(name, variant) for name, one in SWEEPS.items() for variant in one.get_sweep().variants]
    assert len({address(*run, "encoder") for run in runs}) == 1
    drawn = [("convergence", "d16"), ("pathways", "transfusion"), ("align", "together")]
    assert len({address(*run, "codec") for run in drawn}) == 1


def test_a_reader_is_trained_once_for_two_sweeps():
    read = address("align", "reader", "align")
    assert read == address("pathways", "transfusion", "align")


def test_the_widths_of_latents_differ_in_nothing_but_the_codec():
    sweep = convergence.get_sweep()
    full = variant_config(sweep, "full", 0)
    for name in sweep.variants:
        config = variant_config(sweep, name, 0)
        config.codec = full.codec
        assert config.to_dict() == full.to_dict()


def test_pathways_are_compared_at_equal_steps_weights_and_operations():
    steps = {name: config_of("pathways", name).pretrain.steps for name in ("transfusion", "query")}
    assert steps["transfusion"] == steps["query"]
    assert trained_weights("parameters") == pytest.approx(trained_weights("transfusion"), rel=0.01)
    assert drawing_operations("flops") == pytest.approx(drawing_operations("transfusion"), rel=0.01)
    # Without these variants the comparison would not be one of pathways.
    assert trained_weights("query") > 2 * trained_weights("transfusion")
    assert drawing_operations("query") > 2 * drawing_operations("transfusion")


def test_reading_first_takes_as_many_operations():
    assert operations("align", "reader") == pytest.approx(operations("align", "together"), rel=0.01)
