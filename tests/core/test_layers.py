"""Small layers against their textbook formulas and torch."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core.layers import (
    Embedding,
    LayerNorm,
    Linear,
    Mlp,
    RMSNorm,
    SwiGlu,
    TimeEmbedding,
    matmul,
    sinusoidal,
)

KEY = jax.random.key(0)


def _random(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(KEY, seed), shape)


def _two_products(product):
    """A loss of two scanned products, so that gradients reach inputs and weights of both."""

    def loss(x, kernels):
        y, _ = jax.lax.scan(lambda x, k: (jnp.tanh(product(x, k)), None), x, kernels)
        return jnp.sum(y**2)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(lambda product: product, id="plain"),
        pytest.param(jax.checkpoint, id="remat"),
        pytest.param(lambda product: jax.vmap(product, in_axes=(0, None)), id="vmap"),
    ],
)
def test_matmul_and_its_gradients_equal_the_plain_product_under_scan(transform):
    x, kernels = _random(2, 3, 8), _random(2, 8, 8, seed=1)
    ours, plain = (_two_products(transform(p))(x, kernels) for p in (matmul, jnp.matmul))
    chex.assert_trees_all_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_matmul_computes_in_the_dtype_of_the_activations_and_keeps_that_of_the_weights():
    x, kernel = _random(3, 8).astype(jnp.bfloat16), _random(8, 4, seed=1)
    assert matmul(x, kernel).dtype == jnp.bfloat16
    assert matmul(x, kernel, jnp.float32).dtype == jnp.float32
    gradients = jax.grad(lambda x, k: matmul(x, k, jnp.float32).sum(), argnums=(0, 1))(x, kernel)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]


def test_matmul_in_a_scan_saves_no_copy_of_the_weights():
    """Neither the forward scan's outputs nor its carry hold anything of the kernels' shape."""
    x, kernels = _random(4, 8).astype(jnp.bfloat16), _random(3, 8, 8, seed=1)

    def loss(kernels):
        return jax.lax.scan(lambda x, k: (jnp.tanh(matmul(x, k)), None), x, kernels)[0].sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(kernels)
    forward = next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
    assert kernels.shape not in [out.aval.shape for out in forward.outvars]


def test_remat_policies_that_keep_products_see_them():
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    block = jax.checkpoint(lambda x, k: jnp.sin(matmul(x, k)), policy=keep)
    gradient = jax.grad(lambda x, k: block(x, k).sum(), argnums=(0, 1))
    jaxpr = jax.make_jaxpr(gradient)(_random(3, 8), _random(8, 8))
    # The product and the two of its gradient: none is computed a second time.
    assert str(jaxpr).count("dot_general") == 3


def test_matmul_lowers_for_tpu_without_a_platform_switch():
    step = jax.jit(jax.grad(lambda k, x: matmul(x, k).sum()))
    lowered = step.trace(_random(8, 4), _random(3, 8)).lower(lowering_platforms=("tpu",))
    assert "stablehlo.case" not in lowered.as_text()


def test_layer_norm_without_weights_gives_zero_mean_and_unit_variance():
    y = LayerNorm(64, affine=False)({}, 5 + 3 * _random(4, 64))
    np.testing.assert_allclose(np.mean(y, -1), 0, atol=1e-6)
    np.testing.assert_allclose(np.std(y, -1), 1, atol=1e-5)


@pytest.mark.parametrize("norm", [RMSNorm(32), LayerNorm(32)], ids=["rms", "layer"])
def test_norms_compute_in_fp32_and_return_the_dtype_of_their_input(norm):
    x = 300 * _random(4, 32)  # the square of 300 overflows float16
    low = norm(norm.init(KEY), x.astype(jnp.float16))
    assert low.dtype == jnp.float16
    np.testing.assert_allclose(low, norm(norm.init(KEY), x), atol=5e-3)


def test_norms_equal_torch():
    torch = pytest.importorskip("torch")
    x, scale, bias = np.asarray(_random(4, 32)), np.asarray(_random(32)), np.asarray(_random(32))
    tensors = [torch.from_numpy(a.copy()) for a in (x, scale, bias)]
    ours = LayerNorm(32)({"scale": scale, "bias": bias}, jnp.asarray(x))
    reference = torch.nn.functional.layer_norm(tensors[0], (32,), *tensors[1:], eps=1e-6)
    np.testing.assert_allclose(ours, reference, atol=1e-5)
    ours = RMSNorm(32)({"scale": scale}, jnp.asarray(x))
    reference = torch.nn.functional.rms_norm(tensors[0], (32,), tensors[1], eps=1e-6)
    np.testing.assert_allclose(ours, reference, atol=1e-5)


def test_linear_adds_its_bias():
    layer = Linear(3, 2)
    params = {"kernel": jnp.zeros((3, 2)), "bias": jnp.array([1.0, -2.0])}
    np.testing.assert_array_equal(layer(params, _random(5, 3)), np.tile([1.0, -2.0], (5, 1)))
    assert set(Linear(3, 2, bias=False).specs()) == {"kernel"}


def test_mlp_and_swiglu_follow_their_formulas():
    x = _random(5, 4)
    mlp = Mlp(4, 8, 3, activation="silu")
    p = mlp.init(KEY)
    expected = jax.nn.silu(x @ p["up"]["kernel"]) @ p["down"]["kernel"]
    np.testing.assert_allclose(mlp(p, x), expected, atol=1e-5)
    swiglu = SwiGlu(4, 8)
    p = swiglu.init(KEY)
    wide = jax.nn.silu(x @ p["gate"]["kernel"]) * (x @ p["up"]["kernel"])
    np.testing.assert_allclose(swiglu(p, x), wide @ p["down"]["kernel"], atol=1e-5)


def test_an_embedding_reads_and_scores_against_the_same_table():
    embedding = Embedding(10, 4)
    params = embedding.init(KEY)
    rows = embedding(params, jnp.array([[3, 7]]))
    np.testing.assert_array_equal(rows[0, 1], params["table"][7])
    scores = embedding.attend(params, rows.astype(jnp.bfloat16))
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, rows @ params["table"].T, atol=1e-4)


def test_sinusoids_are_bounded_start_at_one_and_zero_and_tell_times_apart():
    features = sinusoidal(jnp.linspace(0, 1, 101), 64)
    assert np.abs(features).max() <= 1
    np.testing.assert_array_equal(features[0], np.repeat([1.0, 0.0], 32))
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    assert distances[~np.eye(101, dtype=bool)].min() > 0.1


def test_time_embedding_maps_any_leading_shape():
    module = TimeEmbedding(16)
    time = jnp.linspace(0, 1, 6).reshape(2, 3)
    out = module(module.init(KEY), time)
    assert out.shape == (2, 3, 16)
    np.testing.assert_allclose(out[1], module(module.init(KEY), time[1]), atol=1e-6)
