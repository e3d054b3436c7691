"""How many programs a benchmark compiles, counted without compiling any."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from data_pipelines.build import sequence_config
from data_pipelines.images import aspect_buckets
from tests.data.samples import tokenizer
from tests.tiny import tiny_config
from unicom_jax.inference import engine
from unicom_jax.inference.canvas import SIDES, canvas_of
from unicom_jax.inference.generator import Generator
from unicom_jax.models.autoencoder import AutoencoderKL
from unicom_jax.models.paint_space import LatentSpace

PROGRAMS = ("read", "write", "draw", "paint")
BUCKETS = aspect_buckets(256, 4, 16)  # the paper's, a quarter as large


@pytest.fixture
def compiled(monkeypatch) -> dict[tuple, object]:
    """Every program that would be compiled: (name, static arguments, shapes) -> its result.

    The programs are replaced by ones that return zeros of the right shapes.
    """
    made: dict[tuple, object] = {}

    def counted(name):
        program = getattr(engine, name)

        def run(models, params, *arrays, **static):
            leaves, tree = jax.tree.flatten(arrays)
            shapes = tuple((np.shape(x), str(getattr(x, "dtype", type(x)))) for x in leaves)
            key = (name, models, shapes, tree, tuple(static.items()))
            if key not in made:
                made[key] = program.eval_shape(models, params, *arrays, **static)
            return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), made[key])

        return run

    for name in PROGRAMS:
        monkeypatch.setattr(engine, name, counted(name))
    return made


def generator(**overrides) -> Generator:
    config = tiny_config(
        data__vocab_size=tokenizer().vocab_size,
        data__image_size=256,
        data__patch=4,
        data__policy="bucket",
        data__bucket_step=16,
        encoder__naflex=True,
        **overrides,
    )
    models = Generator(config, tokenizer(), {}).models
    parts = {name: getattr(models, name) for name in ("vision", "codec", "unified")}
    return Generator(config, tokenizer(), {name: part.abstract() for name, part in parts.items()})


def test_edits_of_33_aspect_ratios_take_few_programs(compiled):
    model = generator(evaluation__batch_size=2)
    words = ["make it blue", "add a small red circle on the left of the large green square"]
    images = [np.zeros((*size, 3), np.uint8) for size in BUCKETS]
    assert len(images) == 33
    edited = model.edit(images, [words[i % 2] for i in range(33)], steps=4, guidance=3.0)
    assert [one.shape[:2] for one in edited] == list(BUCKETS)
    for guidance in (2.0, 5.0):
        model.edit(images[:2], words[0], steps=4, guidance=guidance)
    names = [key[0] for key in compiled]
    assert len(names) + 2 * SIDES <= 12  # an autoencoder has so many more canvases
    assert {name: names.count(name) for name in set(names)} == {"read": 2, "draw": 2, "paint": 1}


def test_answers_of_any_length_take_few_programs(compiled):
    model = generator(evaluation__batch_size=1)
    for length in range(1, 120, 7):
        model.write("red " * length, max_tokens=length)
    assert len(compiled) <= 6


# ---- canvases of an autoencoder ---------------------------------------------------------------


def latent_space() -> LatentSpace:
    return LatentSpace(AutoencoderKL(latent_channels=4, widths=(32, 32)), 4, 128, 128, ragged=True)


@pytest.mark.parametrize(("policy", "larger"), [("bucket", 1.4), ("bucket_walk", 1.51)])
def test_an_autoencoder_sees_33_aspect_ratios_on_few_canvases(policy, larger):
    sizes = {"data__policy": policy, "data__image_size": 256, "data__bucket_step": 16}
    sequence = sequence_config(tiny_config(data__patch=4, **sizes))
    grids = [(height // 4, width // 4) for height, width in sequence.images.buckets(4)]
    assert len(grids) == 33
    canvases = [canvas_of(grid, latent_space(), sequence) for grid in grids]
    assert len(set(canvases)) == 2 * SIDES + 1
    for (rows, cols), canvas in zip(grids, canvases, strict=True):
        space = canvas.space
        assert rows <= space.rows and cols <= space.cols
        assert space.rows * space.cols < larger * rows * cols  # of 128 x 128 it would be 4 times
        assert rows * cols <= canvas.patches <= sequence.max_patches


def test_a_square_has_a_canvas_of_its_own_size():
    sequence = sequence_config(tiny_config(data__image_size=256, data__patch=4))
    canvas = canvas_of((64, 64), latent_space(), sequence)
    assert (canvas.space.rows, canvas.space.cols, canvas.space.ragged) == (64, 64, False)
