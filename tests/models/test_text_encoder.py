"""The text tower against transformers and its own properties."""

from __future__ import annotations

import dataclasses

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
from unicom_jax.models.text_encoder import TextEncoder

SIGLIP, PARITY = LAYOUTS["siglip"], 1e-5
ENCODER = TextEncoder(
    vocab_size=50, width=32, depth=3, heads=4, mlp_dim=48, max_length=10, out_dim=24
)
TOKENS = np.random.default_rng(0).integers(2, 50, (3, 8)).astype(np.int32)
LENGTHS = np.array([8, 3, 1], np.int32)


def reference(generation: str):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{generation}TextConfig")(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=10,
        projection_size=24,
        attn_implementation="eager",
    )
    model = getattr(transformers, f"{generation}TextModel")(config)
    randomise(model)
    return model.eval()


def run_reference(model, lengths):
    import torch

    shown = None
    if lengths is not None:
        shown = torch.tensor((np.arange(8)[None] < lengths[:, None]).astype(np.int64))
    return model(input_ids=torch.tensor(TOKENS).long(), attention_mask=shown).pooler_output


encode = jax.jit(ENCODER.__call__)


@pytest.fixture(scope="module")
def weights():
    return jax.jit(ENCODER.init)(jax.random.key(0))


@pytest.mark.parametrize("generation", ["Siglip", "Siglip2"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all slots seen", "padding hidden"])
def test_equals_transformers(generation, lengths):
    torch = pytest.importorskip("torch")
    model = reference(generation)
    with torch.no_grad():
        theirs = run_reference(model, lengths)
    ours = encode(tree_of(SIGLIP, ENCODER, state_of(model)), TOKENS, lengths)
    assert_close(ours, theirs.numpy(), PARITY)


def test_equals_transformers_in_gradients():
    pytest.importorskip("torch")
    model = reference("Siglip2")
    run_reference(model, LENGTHS).pow(2).sum().backward()

    def loss(params):
        return jnp.square(ENCODER(params, TOKENS, LENGTHS)).sum()

    ours = jax.jit(jax.grad(loss))(tree_of(SIGLIP, ENCODER, state_of(model)))
    assert_trees_close(ours, tree_of(SIGLIP, ENCODER, gradients_of(model)), 5 * PARITY, floor=1e-3)


def test_hidden_padding_changes_nothing_and_seen_padding_does(weights):
    other = TOKENS.copy()
    other[1:, 4:7] = 1  # padding of the second and the third text, short of the slot that is read
    np.testing.assert_array_equal(encode(weights, TOKENS, LENGTHS), encode(weights, other, LENGTHS))
    assert np.abs(encode(weights, TOKENS) - encode(weights, other))[1:].max() > 1e-3


def test_the_order_of_the_tokens_matters(weights):
    flipped = TOKENS.copy()
    flipped[:, [0, 1]] = TOKENS[:, [1, 0]]
    assert np.abs(encode(weights, TOKENS) - encode(weights, flipped)).max() > 1e-3


def test_activations_run_in_the_asked_dtype(weights):
    half = dataclasses.replace(ENCODER, dtype="bfloat16")(weights, TOKENS)
    assert half.dtype == jnp.bfloat16
    assert_close(half.astype(jnp.float32), encode(weights, TOKENS), 0.03)


@pytest.mark.parametrize(("name", "out_dim"), [("base", 768), ("so400m", 1152), ("so400m", 1536)])
def test_named_sizes_have_the_number_of_weights_of_transformers(name, out_dim):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    encoder = TextEncoder.named(name, out_dim=out_dim)
    config = transformers.Siglip2TextConfig(
        vocab_size=256_000,
        hidden_size=encoder.width,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.mlp_dim,
        max_position_embeddings=64,
        projection_size=out_dim,
    )
    with torch.device("meta"):
        model = transformers.Siglip2TextModel(config)
    assert encoder.param_count() == sum(weight.numel() for weight in model.parameters())


def test_a_text_that_is_too_long_is_refused(weights):
    with pytest.raises(ValueError, match="11 tokens exceed max_length 10; truncate"):
        ENCODER(weights, jnp.zeros((1, 11), jnp.int32))
