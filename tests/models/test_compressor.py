"""Compressors: the paper's sizes, parity with PyTorch, symmetry, padding and pooling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.weights import trained
from unicom_jax.models.compressor import make_compressor, make_decompressor

WIDE, NARROW = 12, 4
OPTIONS = {"attention": {}, "mlp": {}, "pool": {"window": 2}}
GRIDS = jnp.array([[2, 4], [2, 2]])
FEATURES = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8, WIDE)), jnp.float32)
DRAW = np.random.default_rng(3).standard_normal
run = jax.jit(lambda module, params, x, grids: module(params, x, grids), static_argnums=0)


def test_parameter_counts_are_those_of_the_paper():
    assert make_compressor("attention", 1152, 64).param_count() == 4_091_328
    assert make_decompressor("attention", 1152, 64).param_count() == 9_599_872


@pytest.mark.parametrize("kind", OPTIONS)
def test_shapes_and_precision(kind):
    down = make_compressor(kind, WIDE, NARROW, **OPTIONS[kind])
    up = make_decompressor(kind, WIDE, NARROW, **OPTIONS[kind])
    latents = run(down, trained(down), FEATURES.astype(jnp.bfloat16), GRIDS)
    assert (latents.shape, latents.dtype) == ((2, 8 // down.window**2, NARROW), jnp.float32)
    assert run(up, trained(up), latents, GRIDS).shape == FEATURES.shape


def torch_projection(params, x, heads):
    """The description of UniTok's projection in PyTorch primitives; x (N, in), no padding."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    weights = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), params)
    x = torch.tensor(np.asarray(x))

    def norm(w, x, eps=1e-5):
        return functional.layer_norm(x, x.shape[-1:], w["scale"], w["bias"], eps=eps)

    def linear(w, x):
        return functional.linear(x, w["kernel"].T, w["bias"])

    attention = weights["attention"]
    in_dim, inner = attention["qkv"].shape[0], attention["qkv"].shape[1] // 3
    bias = torch.cat([attention["q_bias"], torch.zeros(inner), attention["v_bias"]])
    qkv = functional.linear(norm(weights["norm1"], x), attention["qkv"].T, bias)
    q, k, v = qkv.reshape(len(x), 3, heads, inner // heads).permute(1, 2, 0, 3)
    mixed = functional.scaled_dot_product_attention(q, k, v)  # (heads, N, head_dim)
    down = in_dim == inner
    mixed = mixed.mean(0) if down else mixed.transpose(0, 1).reshape(len(x), -1)
    y = linear(weights["linear"], norm(weights["norm3"], x)) + linear(attention["output"], mixed)
    mlp, z = weights["mlp"], norm(weights["norm2"], y)
    z = norm(mlp["norm"], z, 1e-6)
    gate = functional.gelu(linear(mlp["gate"], z), approximate="tanh")
    return (y + linear(mlp["down"], gate * linear(mlp["up"], z))).numpy()


@pytest.mark.parametrize("heads", [3, 2])
@pytest.mark.parametrize("make", [make_compressor, make_decompressor])
def test_attention_projection_equals_pytorch(make, heads):
    module = make("attention", WIDE, NARROW, heads=heads)
    params = trained(module)
    x = DRAW((1, 6, module.in_dim)).astype(np.float32)
    ours = run(module, params, x, jnp.array([[2, 3]]))[0]
    np.testing.assert_allclose(ours, torch_projection(params, x[0], heads), atol=1e-5)


@pytest.mark.parametrize("make", [make_compressor, make_decompressor])
def test_attention_projection_is_permutation_equivariant(make):
    module = make("attention", WIDE, NARROW)
    params = trained(module)
    x = DRAW((1, 6, module.in_dim)).astype(np.float32)
    order = np.array([3, 0, 5, 1, 4, 2])
    permuted = run(module, params, x[:, order], jnp.array([[2, 3]]))
    np.testing.assert_allclose(
        permuted, run(module, params, x, jnp.array([[2, 3]]))[:, order], atol=1e-5
    )


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("make", [make_compressor, make_decompressor])
def test_padding_is_zero_and_reaches_nobody(make, kind):
    module = make(kind, WIDE, NARROW, **OPTIONS[kind])
    params = trained(module)
    tokens = 2 if make is make_decompressor and kind == "pool" else 8
    x = DRAW((2, tokens, module.in_dim)).astype(np.float32)
    valid = tokens // 2  # the second grid of GRIDS is half as large
    poisoned = x.copy()
    poisoned[1, valid:] = np.nan
    out = run(module, params, poisoned, GRIDS)
    np.testing.assert_array_equal(out, run(module, params, x, GRIDS))
    assert not np.any(out[1, out.shape[1] // 2 :])
    alone = run(module, params, x[1:, :valid], GRIDS[1:])
    np.testing.assert_allclose(out[1:, : out.shape[1] // 2], alone, atol=1e-6)


def test_identity_passes_valid_features_on():
    out = make_compressor("identity", WIDE, WIDE)({}, FEATURES, GRIDS)
    np.testing.assert_array_equal(out[0], FEATURES[0])
    np.testing.assert_array_equal(out[1, :4], FEATURES[1, :4])
    assert not np.any(out[1, 4:])


def test_pool_joins_the_squares_of_the_image():
    module = make_compressor("pool", 1, 4, window=2)
    params = {"linear": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}
    image = jnp.arange(8.0).reshape(1, 8, 1)  # rows 0 1 2 3 and 4 5 6 7
    latents = run(module, params, image, jnp.array([[2, 4]]))
    np.testing.assert_array_equal(latents[0], [[0, 1, 4, 5], [2, 3, 6, 7]])


def test_unpool_puts_every_token_back_in_its_place():
    grids = jnp.array([[2, 4], [4, 2], [2, 2]])
    eye = {"linear": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}
    image = jnp.arange(24.0).reshape(3, 8, 1).at[2, 4:].set(0.0)
    latents = run(make_compressor("pool", 1, 4, window=2), eye, image, grids)
    restored = run(make_decompressor("pool", 1, 4, window=2), eye, latents, grids)
    np.testing.assert_array_equal(restored, image)


def test_pool_of_an_odd_grid_raises():
    module = make_compressor("pool", WIDE, NARROW, window=2)
    with pytest.raises(ValueError, match="multiples of 2"):
        module(trained(module), FEATURES, jnp.array([[2, 4], [1, 4]]))


def test_pool_of_an_odd_grid_is_nan_under_jit_and_leaves_the_others_alone():
    module = make_compressor("pool", WIDE, NARROW, window=2)
    latents = jax.jit(module)(trained(module), FEATURES, jnp.array([[2, 4], [2, 3]]))
    assert np.all(np.isfinite(latents[0]))
    assert np.all(np.isnan(latents[1, :1]))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("attention", 12, 5), {}, "divides feature_dim or give heads"),
        (("attention", 12, 4), {"heads": 5}, "choose heads that do"),
        (("mlp", 12, 4), {"heads": 3}, "drop it"),
        (("pool", 12, 4), {}, "needs it"),
        (("mlp", 12, 4), {"window": 2}, "only"),
        (("identity", 12, 4), {}, "set latent_dim=12"),
        (("atention", 12, 4), {}, "attention"),
    ],
)
def test_wrong_option_names_the_fix(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        make_compressor(*arguments, **options)
