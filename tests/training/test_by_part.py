"""Losses by task and by source inside a training step."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.batches import unified_loader
from data_pipelines.sources.configured import mixture_parts
from tests.data.samples import tokenizer
from tests.families.documents import lively
from tests.tiny import tiny_config
from unicom_jax.config import KEYS
from unicom_jax.config.key import checked
from unicom_jax.core.batch import Role
from unicom_jax.families.build import build_codec, build_encoder
from unicom_jax.training.stages.unified import unified_stage
from unicom_jax.training.step import row_keys

SOURCES = [
    {"kind": "scenes", "name": "few", "size": 20, "tasks": ("text_to_image", "edit")},
    {"kind": "scenes", "name": "many", "tasks": {"visual_qa": 3, "edit": 2}},
]


def test_a_run_reports_losses_and_counts_of_its_tasks_that_add_up(whole):
    lines = [json.loads(line) for line in (whole / "pretrain" / "metrics.jsonl").open()]
    tasks = {"text": {"text_to_image", "visual_qa", "edit"}, "flow": {"text_to_image", "edit"}}
    steps = [line for line in lines if "loss/text" in line]
    assert steps
    for line in steps:
        for term, own in tasks.items():
            counts = {task: line[f"count/{term}/{task}"] for task in tasks["text"]}
            found = {task: line.get(f"loss/{term}/{task}", 0.0) for task in own}
            assert {task for task, count in counts.items() if count} <= own
            mean = sum(counts[task] * found[task] for task in own) / sum(counts.values())
            assert line[f"loss/{term}"] == pytest.approx(mean, rel=1e-5)
    assert {task for line in steps for task in tasks["text"] if f"loss/text/{task}" in line} == (
        tasks["text"]
    )


def only(batch, part):
    """A batch in which one part alone is learned; everything else in it stays."""
    kept = batch.parts == part
    starts = kept & (batch.roles == Role.NOISY) & (batch.image_token == 0)
    draws = np.full_like(batch.draws, -1)
    for row, slot in zip(*np.nonzero(starts), strict=True):
        index = batch.image_index[row, slot]
        draws[row, index] = batch.draws[row, index]
    weights = np.where(kept, batch.target_weights, 0).astype(np.float32)
    return dataclasses.replace(batch, draws=draws, target_weights=weights)


def test_the_losses_of_a_part_are_those_of_a_batch_in_which_it_alone_is_learned():
    config = tiny_config(
        data__source__size=KEYS["data.source.size"].default,
        data__sources=checked("data.sources", KEYS["data.sources"], SOURCES),
        pretrain__sequence_length=64,
        pretrain__window_documents=20,
        pretrain__overlong="skip",
        **{f"pretrain__mixture__{task}": 0.0 for task in ("text_to_image", "visual_qa", "edit")},
    )
    parts = mixture_parts(config, "pretrain")
    assert parts == (
        ("few", "edit"), ("few", "text_to_image"), ("many", "edit"), ("many", "visual_qa"),
    )  # fmt: skip
    batch = unified_loader(config, "pretrain", tokenizer()).at(0)
    stage = unified_stage("pretrain", config)
    params = lively(stage.module)
    frozen = {
        "encoder": lively(build_encoder(config).vision),
        "codec": lively(build_codec(config), 1),
    }
    keys = row_keys(jax.random.key(1), len(batch.tokens))
    terms_of = jax.jit(stage.loss)
    together = terms_of(params, frozen, jax.tree.map(jnp.asarray, batch), keys)
    sums: dict[str, np.ndarray] = {}
    for number, (source, task) in enumerate(parts):
        alone = terms_of(params, frozen, jax.tree.map(jnp.asarray, only(batch, number)), keys)
        for term in ("text", "flow"):
            pair = np.array([float(x) for x in alone[term]])
            for name in (f"{term}/{task}", f"{term}/source/{source}"):
                sums[name] = sums.get(name, 0.0) + pair
    for name, pair in sums.items():
        np.testing.assert_allclose([float(x) for x in together[name]], pair, rtol=1e-4, atol=1e-6)
    assert all(sums[f"flow/{task}"][1] > 0 for task in ("edit", "text_to_image"))
    assert sums["flow/visual_qa"][1] == 0
