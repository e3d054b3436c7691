"""The transformer against transformers' Qwen2 and Qwen3, and against itself with a cache."""

from __future__ import annotations

import dataclasses
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.torch_weights import gradients_of, state_of, tree_of
from unicom_jax.core.attention import padding_mask
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.positions import image_positions
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.models.transformer import TRANSFORMER_SIZES, KVCache, Transformer

KEY, QWEN = jax.random.key(0), LAYOUTS["qwen"]
TINY = Transformer(
    vocab_size=40, width=24, depth=3, heads=4, kv_heads=2, head_dim=8, mlp_dim=32, rope_theta=1e4
)
FAMILIES = {
    "qwen2": TINY,
    "qwen2-untied": dataclasses.replace(TINY, tied_head=False),
    "qwen3": dataclasses.replace(TINY, qkv_bias=False, qk_norm=True),
}
families = pytest.mark.parametrize("family", FAMILIES)


@cache
def fresh(model: Transformer):
    return jax.jit(model.init)(KEY)


# -- the same weights in torch -------------------------------------------------------------------


def _torch_model(family: str):
    """A transformers model of the family's sizes with random weights, biases and scales."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ours, name = FAMILIES[family], family.split("-")[0].capitalize()
    config = getattr(transformers, f"{name}Config")(
        vocab_size=ours.vocab_size, hidden_size=ours.width, num_hidden_layers=ours.depth,
        num_attention_heads=ours.heads, num_key_value_heads=ours.kv_heads, head_dim=ours.head_dim,
        intermediate_size=ours.mlp_dim, tie_word_embeddings=ours.tied_head,
        rms_norm_eps=ours.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model


# -- inputs --------------------------------------------------------------------------------------


def _causal(batch: int, slots: int) -> MaskIntervals:
    nothing = jnp.zeros((batch, slots), jnp.int32)
    return MaskIntervals(nothing, nothing + jnp.arange(1, slots + 1), nothing, nothing)


def _text_positions(batch: int, slots: int) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(slots)[:, None], (batch, slots, 2))


def _tokens(batch: int, slots: int) -> jax.Array:
    return jax.random.randint(KEY, (batch, slots), 0, TINY.vocab_size)


def _text_logits(model: Transformer, params, tokens: jax.Array) -> jax.Array:
    hidden = model.embed(params, tokens)
    hidden, _ = model(params, hidden, _text_positions(*tokens.shape), _causal(*tokens.shape))
    return model.logits(params, hidden)


run, text_logits = jax.jit(TINY), jax.jit(_text_logits, static_argnums=0)


def _text_loss(model: Transformer, params, tokens: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(_text_logits(model, params, tokens)[:, :-1])
    return -jnp.take_along_axis(log_probabilities, tokens[:, 1:, None], axis=-1).mean()


@cache
def loss_and_gradients(model: Transformer):
    """With the weights of TINY; a choice of `model` adds none."""
    tokens = _tokens(2, 11)
    return jax.jit(jax.value_and_grad(lambda p: _text_loss(model, p, tokens)))(fresh(TINY))


# -- parity --------------------------------------------------------------------------------------


@families
def test_a_block_equals_the_decoder_layer_of_transformers(family):
    torch = pytest.importorskip("torch")
    reference, tokens = _torch_model(family), _tokens(2, 9)
    params = tree_of(QWEN, FAMILIES[family], state_of(reference))
    model = dataclasses.replace(FAMILIES[family], depth=1)
    params = params | {"blocks": jax.tree.map(lambda x: x[:1], params["blocks"])}
    params = params | {"norm": {"scale": jnp.ones(model.width)}}
    hidden = model.embed(params, tokens)
    ours, _ = model(params, hidden, _text_positions(2, 9), _causal(2, 9))

    x = torch.from_numpy(np.asarray(hidden).copy())
    angles = reference.model.rotary_emb(x, torch.arange(9)[None])
    causal = torch.full((9, 9), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        y = reference.model.layers[0](x, attention_mask=causal, position_embeddings=angles)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + model.norm_eps)
    np.testing.assert_allclose(ours, y, atol=1e-5)


@families
def test_logits_and_gradients_equal_transformers(family):
    torch = pytest.importorskip("torch")
    model, reference, tokens = FAMILIES[family], _torch_model(family), _tokens(2, 11)
    params = tree_of(QWEN, model, state_of(reference))
    ids = torch.tensor(np.asarray(tokens).tolist())
    out = reference(ids, labels=ids)
    out.loss.backward()
    np.testing.assert_allclose(
        text_logits(model, params, tokens), out.logits.detach(), rtol=1e-4, atol=1e-4
    )
    ours = jax.jit(jax.grad(lambda p: _text_loss(model, p, tokens)))(params)
    theirs = tree_of(QWEN, model, gradients_of(reference))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)


PUBLIC_TOTALS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
}


@pytest.mark.parametrize("name", TRANSFORMER_SIZES)
def test_the_named_sizes_have_the_published_parameter_counts(name):
    assert TRANSFORMER_SIZES[name]().param_count() == PUBLIC_TOTALS[name]


@pytest.mark.parametrize("name", TRANSFORMER_SIZES)
def test_transformers_counts_the_same_for_the_same_sizes(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ours = TRANSFORMER_SIZES[name]()
    family = "Qwen3" if ours.qk_norm else "Qwen2"
    config = getattr(transformers, f"{family}Config")(
        vocab_size=ours.vocab_size, hidden_size=ours.width, num_hidden_layers=ours.depth,
        num_attention_heads=ours.heads, num_key_value_heads=ours.kv_heads, head_dim=ours.head_dim,
        intermediate_size=ours.mlp_dim, tie_word_embeddings=ours.tied_head,
    )  # fmt: skip
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    assert sum(weight.numel() for weight in model.parameters()) == ours.param_count()


# -- choices that change the cost, not the numbers ------------------------------------------------


@pytest.mark.parametrize(
    "choice",
    [
        {"remat": "dots"},
        {"remat": "full"},
        {"remat": "offload"},
        {"unroll": 2},
        {"unroll": 2, "remat": "full"},
        {"attention_backend": "chunked"},
        {"attention_backend": "chunked", "attention_block": 4, "remat": "full"},
    ],
    ids=str,
)
def test_remat_unrolling_and_backend_leave_loss_and_gradients_as_they_are(choice):
    changed = loss_and_gradients(dataclasses.replace(TINY, **choice))
    chex.assert_trees_all_close(loss_and_gradients(TINY), changed, rtol=1e-7, atol=1e-5)


def test_each_remat_policy_saves_less_than_the_one_before():
    def saved(remat: str) -> int:
        model = dataclasses.replace(TINY, width=64, mlp_dim=256, remat=remat)
        grad = jax.jit(jax.grad(lambda p, tokens: _text_loss(model, p, tokens)))
        tokens = jax.ShapeDtypeStruct((8, 64), jnp.int32)
        compiled = grad.lower(model.abstract(), tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert saved("none") > saved("dots") > saved("full")


def test_offload_keeps_the_residual_stream_on_the_host_and_nothing_on_the_device():
    model, tokens = dataclasses.replace(TINY, remat="offload"), _tokens(2, 11)
    grad = jax.grad(lambda p: _text_loss(model, p, tokens))
    kept = f"[{model.depth},2,11,"  # what every layer leaves for the backward pass
    program = str(jax.make_jaxpr(grad)(model.abstract()))
    kept_on_host = f"f32<host>{kept}{model.width}]"
    assert kept_on_host in program and program.count(kept) == program.count(kept_on_host)


def test_bfloat16_activations_stay_bfloat16_with_fp32_logits():
    params, tokens = fresh(TINY), _tokens(1, 6)
    hidden = TINY.embed(params, tokens).astype(jnp.bfloat16)
    hidden, _ = run(params, hidden, _text_positions(1, 6), _causal(1, 6))
    assert hidden.dtype == jnp.bfloat16
    logits = TINY.logits(params, hidden)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, text_logits(TINY, params, tokens), atol=0.02)


def test_it_lowers_for_tpu_with_its_gradient():
    model = dataclasses.replace(TINY, remat="dots", attention_backend="chunked")
    grad = jax.jit(jax.grad(lambda p, tokens: _text_loss(model, p, tokens)))
    grad.trace(model.abstract(), _tokens(1, 8)).lower(lowering_platforms=("tpu",))


# -- mask and positions ---------------------------------------------------------------------------


def test_two_packed_documents_equal_each_alone():
    params, tokens = fresh(TINY), _tokens(1, 9)
    start = jnp.array([[0] * 4 + [4] * 5], jnp.int32)
    mask = _causal(1, 9).replace(context_start=start)
    positions = _text_positions(1, 9) - start[..., None]
    packed, _ = run(params, TINY.embed(params, tokens), positions, mask)
    for part in (slice(0, 4), slice(4, 9)):
        alone = text_logits(TINY, params, tokens[:, part])
        np.testing.assert_allclose(TINY.logits(params, packed[:, part]), alone, atol=1e-5)


# -- cache ---------------------------------------------------------------------------------------


def _cut(mask: MaskIntervals, start: int, stop: int) -> MaskIntervals:
    return jax.tree.map(lambda x: x[:, start:stop], mask)


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_token_by_token_with_a_cache_equals_one_pass(backend):
    model = dataclasses.replace(FAMILIES["qwen3"], attention_backend=backend)
    params, tokens = fresh(model), _tokens(2, 7)
    hidden, positions, mask = model.embed(params, tokens), _text_positions(2, 7), _causal(2, 7)
    step = jax.jit(model)
    whole, _ = step(params, hidden, positions, mask)

    cache = model.init_cache(2, 10)
    for i in range(7):
        now = slice(i, i + 1)
        out, cache = step(params, hidden[:, now], positions[:, now], _cut(mask, i, i + 1), cache, i)
        np.testing.assert_allclose(out, whole[:, now], atol=1e-5)


def test_an_image_block_on_ragged_prefixes_equals_each_row_alone():
    """Prompts of 2 and 5 tokens in 5 prefix slots, then a 2 x 3 image that sees itself."""
    lengths, prefix, image = [2, 5], 5, 6
    params, tokens = fresh(TINY), _tokens(2, prefix)
    text = TINY.embed(params, tokens)
    latents = jax.random.normal(KEY, (2, image, TINY.width))
    places = jnp.stack([jnp.asarray(image_positions(n, 2, 3)) for n in lengths])

    cache = TINY.init_cache(2, prefix + image + 3)
    _, cache = run(params, text, _text_positions(2, prefix), _causal(2, prefix), cache)
    bounds = padding_mask(jnp.array(lengths), image)
    mask = bounds.replace(
        span_start=jnp.full((2, image), prefix), span_stop=jnp.full((2, image), prefix + image)
    )
    out, _ = run(params, latents, places, mask, cache, prefix)

    for row, n in enumerate(lengths):
        alone = jnp.concatenate([text[row, :n], latents[row]])[None]
        positions = jnp.concatenate([_text_positions(1, n), places[row : row + 1]], axis=1)
        mask = _causal(1, n + image)
        mask = mask.replace(context_stop=mask.context_stop.at[:, n:].set(n + image))
        whole, _ = run(params, alone, positions, mask)
        np.testing.assert_allclose(out[row], whole[0, n:], atol=1e-5)


def test_the_cache_is_written_only_where_asked():
    params, tokens = fresh(TINY), _tokens(1, 2)
    cache = jax.tree.map(lambda x: x + 7, TINY.init_cache(1, 6))
    mask = padding_mask(jnp.array([5]), 2)
    _, after = run(params, TINY.embed(params, tokens), _text_positions(1, 2), mask, cache, 3)
    assert isinstance(after, KVCache) and after.k.shape == (3, 1, 6, 2, 8)
    changed = np.any(after.k != 7, axis=(0, 1, 3, 4))
    np.testing.assert_array_equal(changed, [False, False, False, True, True, False])


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"remat": "some"}, r"unknown remat 'some'; use one of none, dots, full, offload"),
        ({"attention_backend": "flash"}, "unknown attention backend 'flash'; use one of"),
        ({"attention_block": 64}, "only 'chunked' takes"),
        ({"kv_heads": 3}, "heads=4 is not a multiple of kv_heads=3"),
        ({"head_dim": 7}, "head_dim=7 is odd"),
    ],
)
def test_an_impossible_model_is_refused_when_it_is_made(choice, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **choice)


@pytest.mark.parametrize(
    "rows, slots, message", [(1, 3, "too few to write up to 4"), (2, 8, "holds 2 rows")]
)
def test_a_cache_that_does_not_fit_is_refused(rows, slots, message):
    params, mask = fresh(TINY), _causal(1, 2)
    hidden, positions = jnp.zeros((1, 2, TINY.width)), _text_positions(1, 2)
    with pytest.raises(ValueError, match=message):
        TINY(params, hidden, positions, mask, TINY.init_cache(rows, slots), 2)


def test_fresh_token_embeddings_have_the_deviation_asked_for():
    module = dataclasses.replace(TINY, vocab_size=4096, embedding_std=0.3)
    table = jax.jit(lambda key: module.init(key)["embedding"]["table"])(KEY)
    np.testing.assert_allclose(np.std(table), 0.3, rtol=0.02)


@pytest.mark.parametrize(("slots", "loops"), [(1, 1), (2, 2)])
@pytest.mark.parametrize("backend", ["chunked", "fused"])
def test_a_step_of_decoding_does_not_loop_over_blocks_of_keys(backend, slots, loops):
    """One query has a row of scores; more run a loop over keys within that over layers."""
    model = dataclasses.replace(TINY, attention_backend=backend)
    nothing = jnp.zeros((1, slots), jnp.int32)
    traced = jax.make_jaxpr(model)(
        model.abstract(),
        jnp.zeros((1, slots, model.width)),
        jnp.zeros((1, slots, 2), jnp.int32),
        MaskIntervals(nothing, nothing + 9, nothing, nothing),
        model.init_cache(1, 300),
        jnp.int32(8),
    )
    assert str(traced).count(" scan[") == loops
