"""Training from packed rows is training from the pipeline, with pictures or their features."""

from __future__ import annotations

import shutil
from contextlib import closing

import chex
import numpy as np
import pytest

from data_pipelines.faults import SourceError
from data_pipelines.loading.rows import PROBE
from data_pipelines.sequences.tasks import TASKS
from data_pipelines.sequences.tokenizer import load_tokenizer
from tests.data.packed import begin, pack
from tests.training.conftest import config, go
from tests.training.test_resume import losses
from unicom_jax.runs.features import FeatureMaker
from unicom_jax.runs.loading import stage_loader
from unicom_jax.runs.packed import keep_probe

HALVES = ("float16", "bfloat16")


BY_TASK = tuple(f"/{task}" for task in TASKS)  # packed rows are of the mixture alone


def go_packed(workdir, rows):
    go(workdir, "pretrain", data__packed=str(rows), pretrain__eval_by_task=False)


def losses_of_the_mixture(workdir):
    return [
        {key: value for key, value in line.items() if not key.endswith(BY_TASK)}
        for line in losses(workdir, "pretrain")
    ]


@pytest.fixture(scope="module")
def tokenizer(whole):
    return load_tokenizer(whole / "tokenizer")


@pytest.fixture
def fresh(whole, tmp_path):
    """The run before its unified stage."""
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "pretrain")
    return workdir


@pytest.fixture(scope="module")
def featured(whole, tokenizer, tmp_path_factory):
    """dtype -> rows with features of the run's encoder."""
    made = {}

    def rows(dtype):
        if dtype not in made:
            out = tmp_path_factory.mktemp(dtype)
            features = FeatureMaker(str(whole), dtype)
            plan, shards, _ = begin(config(), tokenizer, out, features=features)
            keep_probe(plan, shards[0], features)
            made[dtype] = pack(config(), tokenizer, out, features=features)
        return made[dtype]

    return rows


def test_packed_rows_give_the_same_losses_to_the_last_bit(whole, fresh, tokenizer, tmp_path):
    packed = pack(config(), tokenizer, tmp_path / "rows")
    go_packed(fresh, packed)
    assert losses_of_the_mixture(fresh) == losses_of_the_mixture(whole)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 1e-6), *(pytest.param(t, 1e-2, marks=pytest.mark.slow) for t in HALVES)],
)
def test_features_made_before_give_the_same_losses(whole, fresh, featured, dtype, tolerance):
    go_packed(fresh, featured(dtype))
    pairs = zip(losses_of_the_mixture(fresh), losses_of_the_mixture(whole), strict=True)
    for left, right in pairs:
        assert left == pytest.approx(right, rel=tolerance, abs=tolerance)


@pytest.mark.slow
def test_workers_read_features_of_a_type_that_numpy_lacks(featured, tokenizer):
    made = []
    for workers in (0, 1):
        here = config(data__packed=str(featured("bfloat16")), data__workers=workers)
        with closing(stage_loader(here, "pretrain", tokenizer)) as stream:
            made.append([next(stream) for _ in range(3)])
    for left, right in zip(*made, strict=True):
        chex.assert_trees_all_equal(left, right)
        assert left.patches is None and left.features.dtype == "bfloat16"


def test_features_of_another_encoder_are_refused(fresh, featured, tmp_path):
    packed = shutil.copytree(featured("float32"), tmp_path / "rows")
    with np.load(packed / "pretrain" / PROBE) as probe:
        arrays = dict(probe)
    arrays["features"] = np.random.default_rng(0).normal(size=arrays["features"].shape)
    np.savez(packed / "pretrain" / PROBE, **arrays)
    with pytest.raises(SourceError, match="features of another encoder .* --features=RUN") as error:
        go_packed(fresh, packed)
    assert "\n" not in str(error.value)
