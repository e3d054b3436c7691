"""The image tower against transformers (fixed resolution and NaFlex) and its own properties."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.torch_weights import (
    assert_close,
    assert_trees_close,
    gradients_of,
    randomise,
    state_of,
    tree_of,
)
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.models.encoder_stack import ENCODER_SIZES
from unicom_jax.models.vision_encoder import VisionEncoder, resize_positions

SIGLIP, PARITY = LAYOUTS["siglip"], 1e-5
SIZES = {"width": 32, "depth": 3, "heads": 4, "mlp_dim": 48}
NAFLEX = VisionEncoder(patch_size=2, **SIZES, position_rows=4, position_cols=4)
FIXED = dataclasses.replace(NAFLEX, naflex=False)
# The native grid, a larger and a smaller one, both extremes of aspect ratio; at most 24 slots.
GRIDS = np.array([[4, 4], [6, 4], [2, 3], [1, 20], [12, 2], [1, 1]], np.int32)
SLOTS = 24


def torch_config(kind: type, **extra):
    return kind(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        patch_size=2,
        attn_implementation="eager",
        **extra,
    )


def naflex_reference():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = torch_config(transformers.Siglip2VisionConfig, num_patches=16)
    model = transformers.Siglip2VisionModel(config)
    randomise(model)
    return model.eval()


def fixed_reference():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = torch_config(transformers.SiglipVisionConfig, image_size=8)
    model = transformers.SiglipVisionModel(config)
    randomise(model)
    return model.eval()


def images(count: int, side: int = 8) -> np.ndarray:
    """(count, side, side, 3) in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (count, side, side, 3)).astype(np.float32)


def patchify(pictures: np.ndarray, patch: int = 2) -> np.ndarray:
    count, height, width, channels = pictures.shape
    blocks = pictures.reshape(count, height // patch, patch, width // patch, patch, channels)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(count, -1, patch * patch * channels)


def inside(grids: np.ndarray, slots: int = SLOTS) -> np.ndarray:
    return np.arange(slots)[None] < grids.prod(axis=1)[:, None]


def padded_patches(grids: np.ndarray = GRIDS, slots: int = SLOTS) -> np.ndarray:
    patches = np.random.default_rng(1).uniform(-1, 1, (len(grids), slots, 12))
    return (patches * inside(grids, slots)[..., None]).astype(np.float32)


def run_naflex_reference(model, **options):
    import torch

    return model(
        pixel_values=torch.tensor(padded_patches()),
        pixel_attention_mask=torch.tensor(inside(GRIDS).astype(np.int64)),
        spatial_shapes=torch.tensor(GRIDS, dtype=torch.int64),
        **options,
    )


@jax.jit
def encode(params, patches, grids):
    """(features, pooled features) of the NaFlex encoder."""
    features = NAFLEX(params, patches, grids)
    return features, NAFLEX.pool(params, features, grids)


pool = jax.jit(NAFLEX.pool)
resize = jax.jit(resize_positions, static_argnums=2)


@pytest.fixture(scope="module")
def weights():
    return jax.jit(NAFLEX.init)(jax.random.key(0))


@pytest.mark.parametrize("size", [(4, 4), (9, 5), (2, 3), (1, 1), (1, 40), (8, 2), (7, 4)])
def test_positions_are_resized_as_torch_does_with_antialias(size):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(2).normal(size=(4, 5, 3)).astype(np.float32)
    reference = torch.nn.functional.interpolate(
        torch.tensor(table).permute(2, 0, 1)[None],
        size=size,
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )[0].permute(1, 2, 0)
    ours = resize(table, jnp.array([size]), 48)[0]
    count = size[0] * size[1]
    assert_close(ours[:count], reference.reshape(count, 3).numpy(), PARITY)


def test_positions_of_a_single_column_are_those_of_a_single_row_turned():
    # torch 2.13 on a CPU leaves out the vertical pass where the width becomes 1, so that a column
    # has one position only; turned by a quarter it is right.
    table = jax.random.normal(jax.random.key(0), (4, 5, 3))
    column = resize(table, jnp.array([[7, 1]]), 7)
    row = resize(table.swapaxes(0, 1), jnp.array([[1, 7]]), 7)
    np.testing.assert_allclose(column, row, atol=1e-6)
    assert np.abs(column[0, 0] - column[0, -1]).max() > 0.1


def test_resize_to_the_native_grid_is_the_identity():
    table = jax.random.normal(jax.random.key(0), (4, 5, 3))
    resized = resize_positions(table, jnp.array([[4, 5]]), 20)
    np.testing.assert_array_equal(resized[0], table.reshape(20, 3))


def test_one_compiled_program_serves_all_grids():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def resize(table, grids):
        return resize_positions(table, grids, 12)

    table = jax.random.normal(jax.random.key(0), (4, 4, 3))
    tall, wide = (resize(table, jnp.array([grid])) for grid in ((6, 2), (2, 6)))
    assert np.abs(tall - wide).max() > 0.1


def test_fixed_resolution_equals_transformers_in_features_and_pooling():
    torch = pytest.importorskip("torch")
    model = fixed_reference()
    pictures, grids = images(2), jnp.array([[4, 4], [4, 4]])
    with torch.no_grad():
        theirs = model(torch.tensor(pictures.transpose(0, 3, 1, 2)))
    params = tree_of(SIGLIP, FIXED, state_of(model))

    @jax.jit
    def both(params, patches):
        features = FIXED(params, patches, grids)
        return features, FIXED.pool(params, features, grids)

    features, pooled = both(params, patchify(pictures))
    assert_close(features, theirs.last_hidden_state.numpy(), PARITY)
    assert_close(pooled, theirs.pooler_output.numpy(), PARITY)


def test_fixed_resolution_equals_transformers_in_gradients():
    torch = pytest.importorskip("torch")
    model = fixed_reference()
    pictures, grids = images(2), jnp.array([[4, 4], [4, 4]])
    model(torch.tensor(pictures.transpose(0, 3, 1, 2))).pooler_output.pow(2).sum().backward()

    def loss(params):
        return jnp.square(FIXED.pool(params, FIXED(params, patchify(pictures), grids), grids)).sum()

    ours = jax.jit(jax.grad(loss))(tree_of(SIGLIP, FIXED, state_of(model)))
    assert_trees_close(ours, tree_of(SIGLIP, FIXED, gradients_of(model)), 5 * PARITY, floor=1e-3)


def test_naflex_equals_transformers_in_features_and_pooling():
    torch = pytest.importorskip("torch")
    model = naflex_reference()
    with torch.no_grad():
        theirs = run_naflex_reference(model)
    params = tree_of(SIGLIP, NAFLEX, state_of(model))
    features, pooled = encode(params, padded_patches(), GRIDS)
    reference = theirs.last_hidden_state.numpy() * inside(GRIDS)[..., None]
    assert_close(features, reference, PARITY)
    assert_close(pooled, theirs.pooler_output.numpy(), PARITY)


def test_naflex_equals_transformers_in_gradients():
    pytest.importorskip("torch")
    model = naflex_reference()
    run_naflex_reference(model).pooler_output.pow(2).sum().backward()

    def loss(params):
        return jnp.square(encode(params, padded_patches(), GRIDS)[1]).sum()

    ours = jax.jit(jax.grad(loss))(tree_of(SIGLIP, NAFLEX, state_of(model)))
    assert_trees_close(ours, tree_of(SIGLIP, NAFLEX, gradients_of(model)), 5 * PARITY, floor=1e-3)


def test_hidden_states_equal_transformers_at_every_layer():
    torch = pytest.importorskip("torch")
    model = naflex_reference()
    with torch.no_grad():
        theirs = run_naflex_reference(model, output_hidden_states=True).hidden_states
    ours = NAFLEX.hidden_states(
        tree_of(SIGLIP, NAFLEX, state_of(model)), padded_patches(), GRIDS, (0, 1, 2, 3)
    )
    for layer, reference in enumerate(theirs):
        reference = reference.numpy() * inside(GRIDS)[..., None]
        assert_close(ours[layer], reference, PARITY, f"layer {layer}")
    assert len(theirs) == 4


def test_hidden_states_come_in_the_order_asked_for(weights):
    patches = padded_patches()
    last, first = NAFLEX.hidden_states(weights, patches, GRIDS, (3, 1))
    np.testing.assert_array_equal(first, NAFLEX.hidden_states(weights, patches, GRIDS, (1,))[0])
    np.testing.assert_allclose(
        NAFLEX.norm(weights["norm"], last) * inside(GRIDS)[..., None],
        encode(weights, patches, GRIDS)[0],
        atol=1e-5,
    )


def test_what_stands_in_the_padding_changes_nothing(weights):
    clean = padded_patches()
    dirty = np.where(inside(GRIDS)[..., None], clean, 7.0).astype(np.float32)
    features, pooled = encode(weights, clean, GRIDS)
    np.testing.assert_array_equal(features, encode(weights, dirty, GRIDS)[0])
    dirty_features = jnp.where(inside(GRIDS)[..., None], features, 7.0)
    np.testing.assert_allclose(pooled, pool(weights, dirty_features, GRIDS), atol=1e-5)


def test_padded_equals_unpadded(weights):
    patches = padded_patches()
    features, pooled = encode(weights, patches, GRIDS)
    for row in (2, 3):
        count = GRIDS[row].prod()
        alone = encode(weights, patches[row : row + 1, :count], GRIDS[row : row + 1])
        assert_close(features[row, :count], alone[0][0], PARITY)
        assert_close(pooled[row], alone[1][0], PARITY)


def test_permuting_the_batch_permutes_the_features(weights):
    order = np.array([3, 5, 0, 2, 4, 1])
    patches = padded_patches()
    features, _ = encode(weights, patches, GRIDS)
    permuted, _ = encode(weights, patches[order], GRIDS[order])
    np.testing.assert_allclose(permuted, features[order], atol=1e-5)


def test_padding_tokens_are_exactly_zero(weights):
    features = np.asarray(encode(weights, padded_patches(), GRIDS)[0])
    assert (features[~inside(GRIDS)] == 0).all()
    assert (np.abs(features[inside(GRIDS)]).max(axis=-1) > 0).all()


def test_a_missing_image_gives_zeros_and_finite_gradients(weights):
    grids, patches = jnp.array([[0, 0], [2, 2]]), jnp.ones((2, 4, 12))

    def loss(params):
        features, pooled = encode(params, patches, grids)
        return jnp.square(features).sum() + pooled.sum(), features

    gradients, features = jax.jit(jax.grad(loss, has_aux=True))(weights)
    assert (np.asarray(features)[0] == 0).all()
    chex.assert_tree_all_finite(gradients)


def gradient_of(encoder, weights):
    patches = padded_patches()
    return jax.jit(
        jax.grad(lambda params: jnp.square(encoder(params, patches, GRIDS)[..., :5]).sum())
    )(weights)


@pytest.fixture(scope="module")
def plain_gradient(weights):
    return gradient_of(NAFLEX, weights)


@pytest.mark.parametrize("remat", ["dots", "full", "offload"])
def test_remat_changes_no_gradient(weights, plain_gradient, remat):
    ours = gradient_of(dataclasses.replace(NAFLEX, remat=remat), weights)
    assert_trees_close(ours, plain_gradient, PARITY, floor=1e-4)


def test_compute_follows_the_dtype_of_the_patches(weights):
    patches = padded_patches()
    half, pooled = encode(weights, jnp.asarray(patches, jnp.bfloat16), GRIDS)
    assert half.dtype == pooled.dtype == jnp.bfloat16
    assert_close(half.astype(jnp.float32), encode(weights, patches, GRIDS)[0], 0.03)


# Weights of the published image towers, counted in transformers' models. At patch 14 and 384 pixels
# so400m's tower is the 428 million parameters after which it is named in the model cards.
@pytest.mark.parametrize(
    ("name", "patch", "rows", "millions"),
    [
        ("base", 16, 14, 92.9),
        ("large", 16, 16, 316.0),
        ("so400m", 14, 27, 428.2),
        ("so400m", 16, 16, 427.9),
        ("giant_opt", 16, 16, 1163.2),
    ],
)
def test_named_sizes_have_the_published_number_of_weights(name, patch, rows, millions):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    encoder = VisionEncoder.named(name, patch_size=patch, position_rows=rows, position_cols=rows)
    config = transformers.Siglip2VisionConfig(
        hidden_size=encoder.width,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.mlp_dim,
        patch_size=patch,
        num_patches=rows * rows,
    )
    with torch.device("meta"):
        reference = transformers.Siglip2VisionModel(config)
    assert encoder.param_count() == sum(weight.numel() for weight in reference.parameters())
    assert round(encoder.param_count() / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: NAFLEX(w, jnp.zeros((1, 4, 27)), GRIDS[:1]), "patch_size 2 needs 12"),
        (lambda w: FIXED(w, jnp.zeros((1, 6, 12)), GRIDS[:1]), "takes 4 x 4 patches"),
        (lambda w: NAFLEX.hidden_states(w, padded_patches(), GRIDS, (1, 4)), r"\[4\] are outside"),
        (lambda w: VisionEncoder.named("huge"), f"take one of {', '.join(ENCODER_SIZES)}"),
        (lambda w: dataclasses.replace(NAFLEX, remat="some").specs(), "use one of none, dots"),
        (lambda w: dataclasses.replace(NAFLEX, heads=5).specs(), "not a multiple of heads 5"),
    ],
)
def test_a_wrong_call_is_answered_with_the_fix(weights, call, message):
    with pytest.raises(ValueError, match=message):
        call(weights)
