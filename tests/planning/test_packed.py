"""The share of visible pairs that a plan counts: on a run's own rows, or on a stand-in's."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.build import load_or_train_tokenizer
from tests.data.mixed import entries, mixed_config, write_sources
from tests.data.samples import tokenizer
from tests.tiny import tiny_config
from unicom_jax.core.attention import interval_mask
from unicom_jax.parallel.plan.topology import parse_topology
from unicom_jax.planning import packed
from unicom_jax.planning.estimate import estimate_stage
from unicom_jax.planning.packed import stand_in, visible_pairs
from unicom_jax.planning.table import visible_line
from unicom_jax.runs.loading import stage_loader

NOT_HERE = {"data__source__kind": "array_record", "data__source__path": "nowhere/records"}


def test_the_share_is_that_of_the_rows_that_a_run_trains_on_first():
    config = tiny_config()
    found = visible_pairs(config, "pretrain")
    config.pretrain.batch_size = 32
    loader = stage_loader(config, "pretrain", load_or_train_tokenizer(config, None))
    drawn = np.asarray(interval_mask(next(loader).mask, 96))
    loader.close()
    assert found.share == pytest.approx(drawn.mean(), rel=1e-5)
    assert found.blocks == 1  # a row of 96 slots is a single one
    assert found.rows == "32 packed rows of its data"


def test_blocks_without_a_visible_pair_do_not_count(monkeypatch):
    monkeypatch.setattr(packed, "ROWS", 4)
    config = tiny_config(pretrain__sequence_length=640)  # two blocks of 384, partly filled up
    config.pretrain.update({"images_per_row": 40, "batch_size": 4})
    loader = stage_loader(config, "pretrain", load_or_train_tokenizer(config, None))
    drawn = np.asarray(interval_mask(next(loader).mask, 640))
    loader.close()
    blocks = np.pad(drawn, ((0, 0), (0, 128), (0, 128))).reshape(4, 2, 384, 2, 384)
    found = visible_pairs(config, "pretrain")
    assert found.blocks == pytest.approx(blocks.any((2, 4)).mean())
    assert found.share < found.blocks < 1


def test_missing_data_are_replaced_and_the_plan_says_so():
    plan = estimate_stage(tiny_config(**NOT_HERE), "pretrain", parse_topology("cpu:1"))
    line = visible_line(plan)
    assert "pretrain: visible pairs: 32 packed rows of Scenes in place of its data (" in line
    assert "nowhere/records" in line
    own = visible_pairs(tiny_config(), "pretrain").share
    assert plan.visible.share == pytest.approx(own, rel=0.2)  # other words, equal pictures


def test_a_stand_in_has_the_pictures_sizes_of_the_configuration():
    config = tiny_config(data__policy="bucket", data__image_size=64, data__bucket_step=32)
    config.pretrain.sequence_length = 160
    sizes = stand_in(config, "pretrain").data.scenes.sizes
    assert len(sizes) == 5 and max(sizes) == (128, 32)


def test_a_stand_in_of_several_sources_has_their_tasks(tmp_path):
    config = mixed_config(entries(write_sources(tmp_path)))
    alone = stand_in(config, "pretrain")
    assert not alone.data.sources and sum(alone.pretrain.mixture.values()) == pytest.approx(10)
    assert alone.pretrain.mixture.interleaved == 4  # documents
    assert alone.pretrain.mixture.text_to_image == 3
    assert stage_loader(alone, "pretrain", tokenizer()).at(0).tokens.shape == (4, 96)


def test_where_nothing_can_be_packed_all_pairs_count():
    config = tiny_config(**NOT_HERE, pretrain__sequence_length=8)  # no picture fits
    found = visible_pairs(config, "pretrain")
    assert found.share == 1.0 and found.rows.startswith("all pairs count, as no rows can be packed")


def test_a_plan_counts_attention_by_visible_pairs_and_reports_all_pairs_beside():
    plan = estimate_stage(tiny_config(), "pretrain", parse_topology("h100:4"))
    attention = 12 * 2 * 2 * 16 * 4 * 96**2  # layers, heads, channels, rows, pairs
    hidden = plan.all_pairs_flops - plan.model_flops
    assert hidden == pytest.approx((1 - plan.visible.share) * attention)
    assert plan.mfu_by_all_pairs[0] > plan.mfu > plan.mfu_in_turn
    assert estimate_stage(tiny_config(), "codec", parse_topology("h100:4")).visible is None
