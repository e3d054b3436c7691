"""A stage's packed rows, made in this process as Beam's workers would make them."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.preparation import prepare_rows
from data_pipelines.sources.split import EVALUATION, TRAIN
from unicom_jax.runs.stages import data_seed


def begin(config, tokenizer, out: Path, stage="pretrain", features=None, rows=None):
    """The plan, all its files, and those that are missing."""
    settings = config[stage]
    wanted = {
        TRAIN: rows or settings.steps * settings.batch_size,
        EVALUATION: settings.eval_batches * settings.batch_size,
    }
    window = settings.window_rows
    shards = [s for split in wanted for s in prepare_rows.shards_of(split, wanted[split], window)]
    seed = data_seed(config, stage)
    plan = prepare_rows.make_plan(config.to_dict(), stage, tokenizer, out, features, seed=seed)
    about = {"features": features and {"dtype": features.dtype}}
    return plan, shards, prepare_rows.begin(plan, tokenizer, shards, window, about)


def pack(config, tokenizer, out: Path, **options) -> Path:
    plan, shards, missing = begin(config, tokenizer, out, **options)
    for shard in missing:
        prepare_rows.write_shard(plan, shard)
    prepare_rows.finish(plan, shards)
    return out
