"""Both towers and the sigmoid loss against transformers' whole models."""

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
from unicom_jax.core.module import init_params
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.models.contrastive import Contrastive, sigmoid_loss, unit_norm
from unicom_jax.models.text_encoder import TextEncoder
from unicom_jax.models.vision_encoder import VisionEncoder

SIGLIP = LAYOUTS["siglip"]
SIZES = {"width": 32, "depth": 2, "heads": 4, "mlp_dim": 48}
VISION = VisionEncoder(patch_size=2, **SIZES, position_rows=3, position_cols=3)
MODEL = Contrastive(VISION, TextEncoder(vocab_size=50, **SIZES, max_length=6))
FIXED = dataclasses.replace(MODEL, vision=dataclasses.replace(VISION, naflex=False))
GRIDS = np.array([[3, 3], [2, 4], [1, 5], [3, 2]], np.int32)
INSIDE = np.arange(9)[None] < GRIDS.prod(axis=1)[:, None]
TOKENS = np.random.default_rng(0).integers(2, 50, (4, 6)).astype(np.int32)


def reference(generation: str, **vision):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tower = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "attn_implementation": "eager",
    }
    text = {"vocab_size": 50, "max_position_embeddings": 6, "projection_size": 32}
    config = getattr(transformers, f"{generation}Config")(
        text_config={**tower, **text}, vision_config={**tower, "patch_size": 2, **vision}
    )
    model = getattr(transformers, f"{generation}Model")(config)
    randomise(model)
    return model.eval()


def naflex_patches() -> np.ndarray:
    patches = np.random.default_rng(1).uniform(-1, 1, (4, 9, 12)) * INSIDE[..., None]
    return patches.astype(np.float32)


def run_naflex_reference(model):
    import torch

    return model(
        input_ids=torch.tensor(TOKENS).long(),
        pixel_values=torch.tensor(naflex_patches()),
        pixel_attention_mask=torch.tensor(INSIDE.astype(np.int64)),
        spatial_shapes=torch.tensor(GRIDS).long(),
        return_loss=True,
    )


def unit_vectors(seed: int, count: int = 6) -> jax.Array:
    return unit_norm(jax.random.normal(jax.random.key(seed), (count, 8)))


def test_fixed_resolution_logits_equal_transformers():
    torch = pytest.importorskip("torch")
    model = reference("Siglip", image_size=6)
    pictures = np.random.default_rng(2).uniform(-1, 1, (4, 6, 6, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(TOKENS).long(),
            pixel_values=torch.tensor(pictures.transpose(0, 3, 1, 2)),
        ).logits_per_image
    blocks = pictures.reshape(4, 3, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    patches, grids = blocks.reshape(4, 9, 12), np.full((4, 2), 3, np.int32)
    params = tree_of(SIGLIP, FIXED, state_of(model))
    ours = jax.jit(FIXED)(params, patches, grids, TOKENS)
    assert_close(ours, theirs.numpy(), 1e-4)


def test_naflex_logits_and_loss_equal_transformers():
    torch = pytest.importorskip("torch")
    model = reference("Siglip2", num_patches=9)
    with torch.no_grad():
        theirs = run_naflex_reference(model)
    params = tree_of(SIGLIP, MODEL, state_of(model))
    both = jax.jit(lambda *given: (MODEL(*given), MODEL.loss(*given)))
    logits, (total, count) = both(params, naflex_patches(), GRIDS, TOKENS)
    assert_close(logits, theirs.logits_per_image.numpy(), 1e-4)
    np.testing.assert_allclose(total / count, theirs.loss.numpy(), rtol=1e-5)


def test_gradients_equal_transformers():
    pytest.importorskip("torch")
    model = reference("Siglip2", num_patches=9)
    run_naflex_reference(model).loss.backward()

    def loss(params):
        total, count = MODEL.loss(params, naflex_patches(), GRIDS, TOKENS)
        return total / count

    ours = jax.jit(jax.grad(loss))(tree_of(SIGLIP, MODEL, state_of(model)))
    theirs = tree_of(SIGLIP, MODEL, gradients_of(model))
    assert_trees_close(ours, theirs, 1e-4, floor=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_change_neither_the_loss_nor_its_gradients(chunk):
    def loss(inputs, chunk):
        return sigmoid_loss(*inputs, chunk=chunk)[0]

    inputs = unit_vectors(0), unit_vectors(1), jnp.float32(1.5), jnp.float32(-2.0)
    plain, gradients = jax.jit(jax.value_and_grad(loss), static_argnums=1)(inputs, None)
    chunked, chunked_gradients = jax.jit(jax.value_and_grad(loss), static_argnums=1)(inputs, chunk)
    np.testing.assert_allclose(chunked, plain, rtol=1e-6)
    chex.assert_trees_all_close(chunked_gradients, gradients, rtol=1e-5, atol=1e-6)


def test_matching_pairs_lose_less_than_mismatched_ones():
    images, scale, bias = unit_vectors(0), jnp.log(10.0), jnp.float32(-5.0)
    matched, count = sigmoid_loss(images, images, scale, bias)
    mismatched, _ = sigmoid_loss(images, jnp.roll(images, 1, axis=0), scale, bias)
    assert matched < mismatched
    assert count == len(images)


def test_permuting_the_pairs_together_keeps_the_loss():
    order = jnp.array([4, 2, 0, 5, 1, 3])
    images, texts = unit_vectors(0), unit_vectors(1)
    scale, bias = jnp.float32(2.0), jnp.float32(-3.0)
    ours, _ = sigmoid_loss(images[order], texts[order], scale, bias)
    np.testing.assert_allclose(ours, sigmoid_loss(images, texts, scale, bias)[0], rtol=1e-6)


def test_temperature_and_bias_start_as_in_the_paper():
    specs = {name: MODEL.specs()[name] for name in ("logit_scale", "logit_bias")}
    params = init_params(specs, jax.random.key(0))
    np.testing.assert_allclose(jnp.exp(params["logit_scale"]), 10.0, rtol=1e-6)
    assert params["logit_bias"] == -10.0


def test_a_zero_vector_has_a_finite_gradient():
    gradient = jax.grad(lambda x: unit_norm(x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all()


# The number of weights that the hub states for google/siglip-so400m-patch14-384.
def test_so400m_has_the_published_number_of_weights():
    model = Contrastive(
        VisionEncoder.named("so400m", patch_size=14, position_rows=27, position_cols=27),
        TextEncoder.named("so400m", vocab_size=32_000),
    )
    assert model.param_count() == 877_960_498


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sigmoid_loss(unit_vectors(0), unit_vectors(1, 5), 0.0, 0.0),
            "6 images but 5 texts",
        ),
        (
            lambda: sigmoid_loss(unit_vectors(0), unit_vectors(1), 0.0, 0.0, chunk=4),
            "chunk 4 does not divide the batch of 6",
        ),
        (
            lambda: Contrastive(VISION, TextEncoder(vocab_size=50, **SIZES, out_dim=16)),
            "set the text tower's out_dim to 32",
        ),
    ],
)
def test_a_wrong_call_is_answered_with_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()
