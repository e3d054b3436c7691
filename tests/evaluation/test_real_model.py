"""The suites with `Generator` itself, on a tiny model of random weights."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import io
import shutil
import weakref

import chex
import jax
import pytest
from rich.console import Console

from tests.evaluation.helpers import examples
from tests.runs.workdirs import write_run
from unicom_jax.config import ConfigError
from unicom_jax.evaluation.command import run_evaluate
from unicom_jax.evaluation.protocol import Encoder, UnifiedModel
from unicom_jax.evaluation.reconstruction import evaluate_reconstruction
from unicom_jax.evaluation.suite import EvaluationConfig
from unicom_jax.inference.generator import Generator
from unicom_jax.inference.picture_encoder import PictureEncoder
from unicom_jax.runs import weights

METHODS = ("answer", "caption", "draw", "edit", "reconstruct", "prepared")
USED = [(UnifiedModel, Generator, name) for name in METHODS]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.mark.parametrize(
    ("protocol", "model", "name"), [*USED, (Encoder, PictureEncoder, "features")]
)
def test_models_take_what_the_suites_give(protocol, model, name):
    asked = inspect.signature(getattr(protocol, name)).parameters.values()
    given = {parameter.name: None for parameter in asked if parameter.name != "self"}
    inspect.signature(getattr(model, name)).bind(None, **given)


def test_a_picture_is_reconstructed_alike_at_every_batch_size(workdir):
    generator = Generator.load(workdir)
    config = EvaluationConfig(image_size=32, pictures=5, shown=5)
    copies = []
    for size in (2, 4):
        generator.batch_size = size
        records = evaluate_reconstruction(
            generator, examples(5), dataclasses.replace(config, batch_size=size)
        ).records
        copies.append([record.reconstruction.astype(int) for record in records])
    chex.assert_trees_all_close(*copies, atol=1)  # levels of 255


def test_the_untrained_model_has_the_types_of_the_trained_one(workdir):
    config, _ = weights.describe(workdir)
    config["compute_dtype"] = "bfloat16"
    trained = weights.restore(workdir, config, for_use=True)
    untrained = jax.eval_shape(lambda: weights.untrained(config, 0))
    chex.assert_trees_all_equal_shapes_and_dtypes(trained, untrained)
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(untrained)}
    assert kinds == {"bfloat16", "float32"}


def test_the_encoder_that_stays_holds_no_other_weights(workdir):
    generator = Generator.load(workdir)
    expected = generator.features([examples(1)[0].image])
    encoder, gone = generator.encoder, weakref.ref(generator)
    del generator
    gc.collect()
    assert gone() is None
    assert set(encoder.params) == {"vision"}
    assert encoder.fingerprint == Generator.load(workdir).encoder.fingerprint
    chex.assert_trees_all_equal(encoder.features([examples(1)[0].image]), expected)


@pytest.mark.parametrize("autoencoder", ["", "small"])
def test_before_a_model_is_trained_the_codec_is_scored_as_with_it(autoencoder, tmp_path):
    """A codec that paints pixels, and one that paints latents of a given autoencoder."""
    counts = {"prompts": 0, "questions": 0, "edits": 0, "pictures": 4}
    settings = {f"evaluation__{name}": count for name, count in counts.items()}
    workdir = write_run(tmp_path / "run", codec__autoencoder__path=autoencoder, **settings)
    printed = Console(file=io.StringIO(), width=200)
    whole = run_evaluate(workdir, printed, suites="reconstructions")
    shutil.rmtree(workdir / "pretrain")
    assert run_evaluate(workdir, printed) == whole
    assert "no unified model was trained: only the codec is scored" in printed.file.getvalue()
    scores = {"psnr", "psnr.untrained", "kid", "agreement"}
    assert {f"reconstruction/{name}" for name in scores} <= whole.keys()
    with pytest.raises(ConfigError, match="the codec alone only reconstructs"):
        run_evaluate(workdir, printed, suites="edits")
    with pytest.raises(ValueError, match="--step=7 chooses a checkpoint of the unified model"):
        run_evaluate(workdir, printed, step="7")
