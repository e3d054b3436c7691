"""Qwen2.5-VL's image tower against transformers, and against itself with other padding."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import qwen_vl_torch
from tests.models.torch_weights import assert_close, assert_trees_close, gradients_of, tree_of
from unicom_jax.models.qwen_vision import QwenVision

PARITY = 1e-5
# Vectors: 2 x 3 (one narrow window), 3 x 5 (narrow, flat and single ones), 5 x 2, no picture.
GRIDS, SLOTS = [(4, 6), (6, 10), (10, 4), (0, 0)], 64
VECTORS = [rows * cols // 4 for rows, cols in GRIDS]


def tower():
    _, module, params = qwen_vl_torch.twins()
    return module.vision, params["vision"]


@pytest.fixture(scope="module")
def outcome():
    """Vectors, and the gradients (of weights and patches) of their products with fixed numbers."""
    module, params = tower()
    patches = qwen_vl_torch.drawn(GRIDS, SLOTS)
    weights = np.random.default_rng(1).standard_normal((len(GRIDS), SLOTS // 4, 32))

    def loss(params, patches):
        vectors = module(params, patches, jnp.asarray(GRIDS))
        return jnp.sum(vectors * weights), vectors

    run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    gradients, vectors = run(params, jnp.asarray(patches))
    return patches, weights, vectors, gradients


@pytest.fixture(scope="module")
def run():
    """Vectors of patches on grids."""
    module, params = tower()
    program = jax.jit(module)
    return lambda patches, grids: program(params, jnp.asarray(patches), jnp.asarray(grids))


def test_vectors_and_gradients_equal_transformers(outcome):
    torch = pytest.importorskip("torch")
    patches, weights, ours, (gradients, of_patches) = outcome
    reference = qwen_vl_torch.make().model.visual
    pixels, grids = qwen_vl_torch.joined(patches, GRIDS)
    pixels.requires_grad_()
    theirs = reference(pixels, grids).pooler_output
    factors = [one[:count] for one, count in zip(weights, VECTORS, strict=True)]
    (theirs * torch.from_numpy(np.concatenate(factors).astype(np.float32))).sum().backward()

    found = [np.asarray(one)[:count] for one, count in zip(ours, VECTORS, strict=True)]
    assert_close(np.concatenate(found), theirs.detach(), PARITY)
    module, _ = tower()
    state = {f"visual.{name}": grad for name, grad in gradients_of(reference).items()}
    expected = tree_of(qwen_vl_torch.LAYOUT, module, state)
    assert_trees_close(gradients, expected, PARITY, floor=1e-4)
    of_pictures, _ = qwen_vl_torch.joined(np.asarray(of_patches), GRIDS)
    assert_close(of_pictures, pixels.grad, PARITY)


def test_padding_changes_nothing_and_gets_zeros(outcome, run):
    patches, _, vectors, (_, of_patches) = outcome
    others = np.array(qwen_vl_torch.drawn(GRIDS, SLOTS, seed=2))
    for row, count in enumerate(VECTORS):
        assert not np.any(vectors[row, count:])
        assert not np.any(np.asarray(of_patches)[row, 4 * count :])
        others[row, : 4 * count] = patches[row, : 4 * count]
    np.testing.assert_allclose(run(others, GRIDS), vectors, atol=1e-5)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ((5, 6), "a grid of 5 x 6 tokens does not fill windows of 2 x 2"),
        ((10, 8), "a picture of 10 x 8 patches exceeds the 64 slots of a row"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(run, grid, message):
    module, params = tower()
    patches, grids = qwen_vl_torch.drawn(GRIDS, SLOTS), [grid, *GRIDS[1:]]
    with pytest.raises(ValueError, match=message):
        module(params, jnp.asarray(patches), jnp.asarray(grids))
    vectors = run(patches, grids)
    assert np.isnan(vectors[0, :6]).all() and np.isfinite(vectors[1:]).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 16, 23), "23 channels, but patch_size 2 needs 24"), ((1, 15, 24), "15 patch slots")],
)
def test_patches_of_another_shape_are_refused(shape, message):
    module, params = tower()
    with pytest.raises(ValueError, match=message):
        # The shapes that tests check would refuse the call first.
        QwenVision.__call__.__wrapped__(module, params, jnp.zeros(shape), jnp.asarray([(2, 2)]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_size": 10}, "window_size=10 is not a multiple of patch_size"),
        ({"whole_layers": (3,)}, r"whole_layers \[3\] are outside \[0, 3\)"),
        ({"heads": 3}, "width=16 does not give heads=3 equally many channels"),
        ({"remat": "some"}, "unknown remat"),
        ({"attention_backend": "flash"}, "unknown attention backend"),
    ],
)
def test_an_impossible_tower_is_refused_when_it_is_made(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tower()[0], **changes)
