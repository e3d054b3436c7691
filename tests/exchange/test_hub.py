"""From which models of the Hub a run started, as far as its folder tells."""

from __future__ import annotations

import pytest

from tests.tiny import UAE, tiny_config
from unicom_jax.exchange.hub import ORIGINS, hub_id, keep_origins, origins_of

CACHED = "/cache/hub/models--google--siglip2-base/snapshots/0123abcd"


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("hf://Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("hf://Qwen/Qwen2.5-7B@refs/pr/1/model", "Qwen/Qwen2.5-7B"),
        ("hf://stabilityai/sd3/transformer", "stabilityai/sd3"),
        ("hf://datasets/owner/name/model", None),
        (CACHED, "google/siglip2-base"),
        (f"{CACHED}/transformer", "google/siglip2-base"),
        ("/cache/hub/models--gpt2/snapshots/0123abcd", "gpt2"),
        ("s3://bucket/models--google--siglip2/snapshots/0", None),
        ("/home/someone/Qwen2.5-7B", None),
        ("runs/base:pretrain", None),
        ("", None),
    ],
)
def test_an_address_or_a_folder_of_the_hubs_cache_tells_the_name(place, name):
    assert hub_id(place) == name


def test_a_link_into_the_hubs_cache_tells_the_name(tmp_path):
    snapshot = tmp_path / "models--google--siglip2" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (tmp_path / "siglip2").symlink_to(snapshot)
    assert hub_id(str(tmp_path / "siglip2")) == "google/siglip2"


def test_names_of_several_imports_are_kept_and_unknown_ones_are_not(tmp_path):
    keep_origins(tmp_path, {"encoder.init_from": "/somewhere"})
    assert not (tmp_path / ORIGINS).exists()
    keep_origins(tmp_path, {"encoder.init_from": CACHED, "codec.init_from": "/somewhere"})
    keep_origins(tmp_path, {"unified.init_from": "hf://Qwen/Qwen2.5-7B"})
    config = tiny_config(codec__decoder__init_from="hf://Qwen/Qwen2.5-7B")
    assert sorted(origins_of(tmp_path, config)) == ["Qwen/Qwen2.5-7B", "google/siglip2-base"]


def test_a_part_that_is_imported_anew_from_elsewhere_has_its_old_name_no_more(tmp_path):
    keep_origins(tmp_path, {"encoder.init_from": CACHED, "unified.init_from": "hf://Qwen/VL"})
    keep_origins(tmp_path, {"encoder.init_from": "/somewhere"})
    assert origins_of(tmp_path, tiny_config()) == ["Qwen/VL"]


def test_an_encoder_that_is_no_part_of_the_model_is_no_base_of_it(tmp_path):
    keep_origins(tmp_path, {"encoder.init_from": CACHED, "unified.init_from": "hf://Qwen/VL"})
    assert origins_of(tmp_path, tiny_config(**UAE, encoder__init_from=CACHED)) == ["Qwen/VL"]
