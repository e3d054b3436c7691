"""Which settings Cheers refuses, and the canvas of its pictures."""

from __future__ import annotations

import pytest

from tests.families.cheers_sizes import BUCKETS, SIDE, configured
from unicom_jax.config.check import check_settings
from unicom_jax.config.key import ConfigError
from unicom_jax.families.build import build_unified
from unicom_jax.runs.autoencoder import adopt_autoencoder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__image_size": 20}, "data.image_size=20 is not a multiple of data.patch=4 times"),
        ({"codec__pool": 2, "codec__compressor": "pool", "data__image_size": 32}, "codec.pool=2"),
        ({"unified__understanding": "latents"}, "unified.understanding=latents"),
        ({"unified__edit_source": "both"}, "unified.edit_source=both"),
        (
            {"pretrain__views_per_row": 3, "unified__cheers__flow_over": "all"},
            "pretrain.views_per_row leaves pictures out",
        ),
        (
            {"unified__prediction": "data", "unified__cheers__flow_over": "all"},
            "unified.cheers.flow_over=all needs velocities at t = 1",
        ),
        (
            {"unified__prediction": "data", "sample__grid": "released"},
            "sample.grid=released needs the velocity at t = 1",
        ),
        ({"unified__cheers__details__heads": 5}, "unified.cheers.details.heads=5"),
        ({"unified__cheers__semantics__kv_heads": 3}, "unified.cheers.semantics.kv_heads=3"),
    ],
)
def test_settings_that_the_family_does_not_have_are_refused(change, message):
    config = configured()
    for key, value in change.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    with pytest.raises(ConfigError, match=message):
        check_settings(config, ("pretrain",))


@pytest.mark.parametrize("policy", ["fixed", "crop", "pad"])
def test_a_policy_of_squares_needs_no_other_canvas_than_the_square(policy):
    space = build_unified(configured(data__policy=policy)).images.codec.space
    assert (space.rows, space.cols, space.ragged) == (SIDE, SIDE, False)


def test_the_canvas_of_buckets_is_filled_in_when_a_run_starts(tmp_path):
    config = configured(**BUCKETS, data__bucket_step=8)
    with pytest.raises(ValueError, match=r"autoencoder.canvas=\(\) with data.policy=bucket"):
        build_unified(config)
    adopt_autoencoder(config, tmp_path)
    rows, columns = config.autoencoder.canvas
    assert rows == columns > SIDE
    space = build_unified(config).images.codec.space
    assert (space.rows, space.cols, space.ragged) == (rows, columns, True)
