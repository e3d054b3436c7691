"""The declaration: complete, in step with the code that reads it and with the docs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipelines.scenes import scene
from data_pipelines.sequences import tasks
from data_pipelines.sources import registry
from experiments import base
from unicom_jax.config import KEYS, ConfigError, to_json
from unicom_jax.config.explain import explain, reference_page
from unicom_jax.config.files import check_values
from unicom_jax.config.key import ALWAYS, checked, nearest
from unicom_jax.config.schema import GROUPS, complete
from unicom_jax.core import flow, flow_steps
from unicom_jax.core.attention import ATTENTION_BACKENDS
from unicom_jax.core.remat import REMAT_POLICIES
from unicom_jax.families import build, painters
from unicom_jax.models import cascaded_head, compressor, pixel_decoder
from unicom_jax.runs.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]


def test_the_defaults_are_within_their_own_ranges():
    check_values(base.get_config())


def test_every_key_says_what_it_means_and_survives_json():
    for name, key in KEYS.items():
        assert key.meaning.endswith(".") and len(key.meaning) > 6, name
        stored = json.loads(json.dumps(key.default, default=list))
        assert key.kind is dict or checked(name, key, stored) == key.default, name
        assert key.before is ALWAYS or isinstance(key.before, key.kind), name


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("stages", tuple(STAGES)),
        ("sample.sampler", flow_steps.SAMPLERS),
        ("sample.grid", flow.TIME_GRIDS),
        ("codec.time", flow.TIME_KINDS),
        ("unified.time", flow.TIME_KINDS),
        ("unified.prediction", pixel_decoder.PREDICTIONS),
        ("unified.cheers.positions", cascaded_head.POSITIONS),
        ("unified.cheers.pixel_range", build.DARKEST),
        ("codec.decoder.prediction", pixel_decoder.PREDICTIONS),
        ("codec.decoder.kind", painters.DECODERS),
        ("codec.compressor", compressor.KINDS),
        ("unified.pathway", build.FAMILIES),
        ("unified.transformer.remat", REMAT_POLICIES),
        ("unified.transformer.attention_backend", ATTENTION_BACKENDS),
        ("data.source.kind", registry.KINDS),
        ("data.scenes.colours", scene.COLOURS),
        ("data.scenes.backgrounds", scene.BACKGROUNDS),
        ("data.scenes.shapes", scene.SHAPES),
        ("data.scenes.letters", scene.LETTERS),
        ("data.scenes.object_sizes", scene.RADII),
    ],
)
def test_the_choices_are_those_that_the_code_knows(name, known):
    assert set(KEYS[name].choices) == set(known)


def test_the_mixture_has_every_task():
    assert {f"pretrain.mixture.{task}" for task in tasks.TASKS} == {
        name for name in KEYS if name.startswith("pretrain.mixture.")
    }


def test_the_reference_page_is_in_step_with_the_declaration():
    page = (ROOT / "docs/keys.md").read_text(encoding="utf-8")
    assert page == reference_page(), "run make docs"


def test_explain_shows_a_key_a_group_and_everything():
    text = explain("codec.learning_rate")
    assert (
        "codec.learning_rate = 0.001" in text and "at least 0" in text and "--allow-change" in text
    )
    assert "codec.decoder.width" in explain("codec.decoder")
    assert "encoder" in explain("") and "seed" in explain("")


def test_explain_names_the_nearest_key():
    with pytest.raises(ConfigError, match="did you mean codec.learning_rate?"):
        explain("codec.learning_rat")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("pretrain.step", "pretrain.steps"),
        ("data.source.heldout", "data.source.held_out"),
        ("pretrian.steps", "pretrain.steps"),
        ("pretrian", "pretrain"),
        ("unified.width", "unified.transformer.width"),
        ("nothing_like_it", ""),
    ],
)
def test_the_nearest_key_is_looked_for_in_the_same_group_first(name, meant):
    assert nearest(name, (*KEYS, *GROUPS)) == meant


def test_a_stored_configuration_has_every_key():
    assert set(json.loads(to_json(base.get_config()))) == {name.split(".")[0] for name in KEYS}


@pytest.mark.parametrize("group", ["encoder", "data.source", "unified.transformer"])
def test_a_stored_value_in_place_of_a_group_is_named(group):
    stored = base.get_config().to_dict()
    outer, _, last = group.rpartition(".")
    (stored[outer] if outer else stored)[last] = None
    with pytest.raises(ConfigError, match=f"{group} is None where a group of keys is expected"):
        complete(stored)
