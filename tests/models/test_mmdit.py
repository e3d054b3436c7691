"""Stable Diffusion 3's transformer against diffusers: outputs, gradients, places, sizes."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.families.documents import lively
from tests.models.mmdit_twin import SMALL, VARIANTS, gradients_of, state_of, tree_of, twin_of
from tests.models.torch_weights import assert_close, assert_trees_close
from unicom_jax.interop.layouts.mmdit import describe
from unicom_jax.models.mmdit import MMDIT_SIZES, POSITIONS

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-5  # relative to the reference's largest value
CONTEXT, ROWS, COLS = 5, 3, 4
GRIDS = np.array([[ROWS, COLS]] * 2)
RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


IMAGE, TEXT = draw(2, ROWS * COLS, SMALL.channels), draw(2, CONTEXT, SMALL.context_dim)
POOLED, SIGMA = draw(2, SMALL.pooled_dim), np.float32([0.875, 0.25])
INPUTS = {"image": IMAGE, "context": TEXT, "pooled": POOLED, "sigma": SIGMA}


@partial(jax.jit, static_argnums=0)
def ours(module, params, grids=GRIDS, lengths=None, **changes):
    given = INPUTS | changes
    return module(
        params, given["image"], given["context"], given["sigma"], grids, lengths, given["pooled"]
    )


def as_picture(tokens):
    """(B, N, C) with C = (channel, row, column) -> (B, channels, height, width)."""
    channels, patch = SMALL.latent_channels, SMALL.patch
    squares = tokens.reshape(len(tokens), ROWS, COLS, channels, patch, patch)
    moved = squares.permute(0, 3, 1, 4, 2, 5)
    return moved.reshape(len(tokens), channels, ROWS * patch, COLS * patch)


def as_tokens(picture):
    """The inverse of `as_picture`."""
    channels, patch = SMALL.latent_channels, SMALL.patch
    squares = picture.reshape(len(picture), channels, ROWS, patch, COLS, patch)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(len(picture), ROWS * COLS, -1)


def theirs(twin, given=INPUTS):
    tensors = {name: torch.as_tensor(value) for name, value in given.items()}
    out = twin(
        as_picture(tensors["image"]),
        encoder_hidden_states=tensors["context"],
        pooled_projections=tensors["pooled"],
        timestep=1000 * tensors["sigma"],
        return_dict=False,
    )[0]
    return as_tokens(out)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, tree_of(SMALL, state_of(twin_of(SMALL))))


# --- parity


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_and_gradients_are_those_of_diffusers(name):
    module = VARIANTS[name]
    twin = twin_of(module)
    params = tree_of(module, state_of(twin))
    target = draw(2, ROWS * COLS, SMALL.channels)
    # In double precision: rounding on one side only.
    twin = twin.double()
    tensors = {key: torch.tensor(value).double().requires_grad_() for key, value in INPUTS.items()}
    reference = theirs(twin, tensors)
    (reference * torch.from_numpy(target)).sum().backward()

    def loss(params, inputs):
        found = ours(module, params, **inputs)
        return jnp.sum(found * target), found

    inputs = {key: INPUTS[key] for key in ("image", "context", "pooled")}
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (of_params, of_inputs), found = gradient(params, inputs)
    assert found.dtype == jnp.float32
    assert_close(found, reference.detach(), TOLERANCE)
    for key, mine in of_inputs.items():
        assert_close(mine, tensors[key].grad, TOLERANCE, key)
    # A key's bias hardly matters, and the last block's queries of the context not at all.
    assert_trees_close(of_params, tree_of(module, gradients_of(twin)), TOLERANCE, floor=1e-4)


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_padding_of_picture_and_context_reaches_nobody(params, backend):
    module = dataclasses.replace(SMALL, attention_backend=backend)
    grids, lengths = np.array([[ROWS, COLS], [2, 4]]), np.array([CONTEXT, 3])
    image, context = IMAGE.copy(), TEXT.copy()
    image[1, 8:], context[1, 3:] = 7.0, 7.0
    found = ours(module, params, grids, lengths, image=image, context=context)
    # The second row alone, without its padding.
    alone = module(params, IMAGE[1:, :8], TEXT[1:, :3], SIGMA[1:], grids[1:], None, POOLED[1:])
    assert_close(found[1:, :8], alone, TOLERANCE)
    assert_close(found[:1], ours(SMALL, params)[:1], TOLERANCE)


def test_a_missing_pooled_vector_is_a_zero_vector(params):
    zero = ours(SMALL, params, pooled=np.zeros_like(POOLED))
    np.testing.assert_array_equal(ours(SMALL, params, pooled=None), zero)
    assert np.abs(zero - ours(SMALL, params)).max() > 1e-3


def test_bf16_tokens_give_fp32_output_close_to_that_of_fp32():
    weights = lively(SMALL, scale=0.05)
    half = ours(SMALL, weights, image=jnp.asarray(IMAGE, jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert_close(half, ours(SMALL, weights), 0.03)


def test_remat_changes_no_gradient(params):
    def gradient(module):
        return jax.jit(jax.grad(lambda x: jnp.square(ours(module, params, image=x)).sum()))(IMAGE)

    assert_close(gradient(dataclasses.replace(SMALL, remat="full")), gradient(SMALL), TOLERANCE)


# --- a new model


def test_a_fresh_model_says_nothing_and_has_the_places_of_diffusers():
    fresh = jax.jit(SMALL.init)(jax.random.key(0))
    np.testing.assert_array_equal(ours(SMALL, fresh), 0.0)
    sizes = {key: value for key, value in describe(SMALL).items() if not key.startswith("_")}
    table = diffusers.SD3Transformer2DModel(**sizes).pos_embed.pos_embed
    np.testing.assert_allclose(fresh[POSITIONS], table[0], atol=1e-6)


def test_a_picture_larger_than_the_table_of_places_is_nan(params):
    grids = np.array([[1, 8], [2, 4]])
    places = jax.jit(SMALL.positions, static_argnums=2)(params, grids, 8)
    assert np.all(np.isnan(places[0])) and np.all(np.isfinite(places[1]))


# --- published sizes


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sd3-medium", 2_028_328_000),
        ("sd3.5-medium", 2_243_171_520),
        ("sd3.5-large", 8_056_627_520),
    ],
)
def test_a_published_size_has_its_public_count_besides_the_table_of_places(name, count):
    module = MMDIT_SIZES[name]()
    assert module.param_count() - module.width * module.position_side**2 == count


@pytest.mark.parametrize("name", MMDIT_SIZES)
def test_a_published_size_has_as_many_weights_as_that_of_diffusers(name):
    module = MMDIT_SIZES[name]()
    sizes = {key: value for key, value in describe(module).items() if not key.startswith("_")}
    with torch.device("meta"):
        twin = diffusers.SD3Transformer2DModel(**sizes)
    assert module.param_count() == sum(weight.numel() for weight in twin.state_dict().values())


# --- what does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dual_depth": 4}, "give at least 0 and less than depth"),
        ({"depth": 0, "dual_depth": 0}, "give at least 0 and less than depth"),
        ({"heads": 1, "head_dim": 6}, "a width of 6; places need a multiple of 4"),
        ({"remat": "some"}, "unknown remat 'some'"),
        ({"attention_backend": "fast"}, "unknown attention backend"),
    ],
)
def test_a_wrong_option_names_the_fix(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
