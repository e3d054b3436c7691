"""What a mesh asks of the sizes of a stage."""

from __future__ import annotations

import pytest

from tests.tiny import tiny_config
from unicom_jax.config import ConfigError
from unicom_jax.training.settings import check_on_mesh, copies_on_mesh


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("encoder", "encoder.vision.heads"),
        ("encoder", "encoder.text.heads"),
        ("codec", "codec.decoder.heads"),
        ("pretrain", "unified.transformer.heads"),
        ("pretrain", "unified.flow_decoder.heads"),
    ],
)
def test_heads_that_a_tensor_axis_does_not_divide_are_refused(stage, key):
    config = tiny_config(unified__pathway="query")
    for part in (config.encoder.vision, config.encoder.text, config.codec.decoder):
        part.heads = 8
    config.unified.transformer.heads = config.unified.flow_decoder.heads = 8
    check_on_mesh(stage, config, {"tensor": 8})
    group, part, _ = key.split(".")
    config[group][part].heads = 28
    line = f"{key}=28 does not divide over tensor=8 of the mesh, .* set tensor=4 there"
    with pytest.raises(ConfigError, match=line):
        check_on_mesh(stage, config, {"tensor": 8})
    check_on_mesh(stage, config, {"tensor": 4})


def test_what_a_tensor_axis_keeps_whole_is_named_with_its_key():
    config = tiny_config(data__vocab_size=401)
    config.unified.transformer.heads = 8
    lines = copies_on_mesh("pretrain", config, {"tensor": 8})
    keys = ("encoder.vision.heads=2", "unified.transformer.kv_heads=1", "data.vocab_size=401")
    assert [line.split(" does")[0] for line in lines] == [f"pretrain: {key}" for key in keys]
    assert copies_on_mesh("pretrain", config, {"tensor": 1}) == []
    assert len(copies_on_mesh("codec", config, {"tensor": 8})) == 1  # it reads no words
