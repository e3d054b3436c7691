"""Qwen2.5-VL as a whole against transformers: positions, logits, gradients, answers."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import qwen_vl_torch
from tests.models.qwen_vl_torch import PICTURE, joined, released
from tests.models.torch_weights import assert_close, assert_trees_close, gradients_of, tree_of
from unicom_jax.models.qwen_vl import QWEN_VL_SIZES

PARITY = 1e-4
# Rows with two pictures, with one, and without; at most 16 vectors a picture.
GRIDS = [[(4, 6), (6, 10)], [(10, 4), (0, 0)], [(0, 0), (0, 0)]]
PROMPTS = [
    [3, 7, *[PICTURE] * 6, 8, *[PICTURE] * 15, 4, 9],
    [*[PICTURE] * 10, 11, 12, 5, 5, 20],
    [1, 2, 3, 30],
]
LENGTHS = [len(prompt) for prompt in PROMPTS]
SLOTS = 26


@cache
def inputs():
    """Tokens padded at the end, lengths, patches and grids."""
    tokens = np.full((3, SLOTS), 17)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, : len(prompt)] = prompt
    patches = [qwen_vl_torch.drawn(grids, 64, seed) for seed, grids in enumerate(GRIDS)]
    return tuple(jnp.asarray(x) for x in (tokens, LENGTHS, np.stack(patches), GRIDS))


def as_theirs(row: int) -> dict:
    """The arguments of transformers for one prompt."""
    torch = pytest.importorskip("torch")
    given = {"input_ids": torch.tensor([PROMPTS[row]])}
    patches, grids = joined(np.asarray(inputs()[2][row]), GRIDS[row])
    if len(grids):
        types = (given["input_ids"] == PICTURE).int()
        given |= {"pixel_values": patches, "image_grid_thw": grids, "mm_token_type_ids": types}
    return given


@cache
def learned():
    """Logits, and gradients of the loss of predicting each prompt's tokens."""
    _, module, params = qwen_vl_torch.twins()
    tokens, lengths, patches, grids = inputs()

    def loss(params):
        pictures = module.look(params, patches, grids)
        hidden, _ = module(params, tokens, lengths, pictures, grids)
        logits = module.logits(params, hidden)
        scores = jax.nn.log_softmax(logits[:, :-1])
        picked = jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(picked * (jnp.arange(1, SLOTS) < lengths[:, None])), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    return logits, gradients


def test_logits_and_gradients_equal_transformers():
    torch = pytest.importorskip("torch")
    reference, (_, module, _) = qwen_vl_torch.make(), qwen_vl_torch.twins()
    logits, gradients = learned()
    for row, length in enumerate(LENGTHS):
        given = as_theirs(row)
        theirs = reference(**given, use_cache=False).logits
        scores = torch.log_softmax(theirs[0, :-1], dim=-1)
        (-scores.gather(1, given["input_ids"][0, 1:, None]).sum()).backward()
        assert_close(logits[row, :length], theirs[0].detach(), PARITY, f"row {row}")
    expected = tree_of(qwen_vl_torch.LAYOUT, module, released(gradients_of(reference)))
    assert_trees_close(gradients, expected, PARITY, floor=1e-3)


def test_positions_equal_transformers_exactly():
    torch = pytest.importorskip("torch")
    reference, module, _ = qwen_vl_torch.twins()
    tokens, lengths, _, grids = inputs()
    positions, after, _ = module._places(tokens, lengths, grids)
    np.testing.assert_array_equal(after, module.next_positions(tokens, lengths, grids))
    present = torch.arange(SLOTS) < torch.tensor(LENGTHS)[:, None]
    ids = torch.tensor(np.asarray(tokens).tolist())
    shown = torch.tensor([(1, *grid) for row in GRIDS for grid in row if all(grid)])
    theirs, deltas = reference.model.get_rope_index(
        ids, (ids == PICTURE).int(), shown, attention_mask=present.int()
    )
    np.testing.assert_array_equal(np.moveaxis(np.asarray(positions), -1, 0), theirs)
    np.testing.assert_array_equal(after - lengths, deltas[:, 0])


def test_text_alone_has_equal_positions_and_states_that_saw_no_picture():
    _, module, params = qwen_vl_torch.twins()
    tokens, lengths, *_ = inputs()
    hidden, _ = module(params, tokens[2:], lengths[2:])
    logits = module.logits(params, hidden)
    np.testing.assert_allclose(logits[0, :4], learned()[0][2, :4], atol=1e-4)
    np.testing.assert_array_equal(module.next_positions(tokens[2:], lengths[2:]), [4])


@pytest.mark.parametrize(("change", "given"), [(9, 20), (PICTURE, 22)])
def test_prompts_whose_picture_tokens_do_not_fit_are_refused(change, given):
    _, module, params = qwen_vl_torch.twins()
    tokens, lengths, patches, grids = inputs()
    pictures = jnp.zeros((3, 2, 16, 32))
    tokens = tokens.at[0, 7 if change != PICTURE else 8].set(change)
    with pytest.raises(ValueError, match=f"row 0 has {given} picture tokens .* have 21 vectors"):
        module(params, tokens, lengths, pictures, grids)
    with pytest.raises(ValueError, match=f"row 0 has {given} picture tokens .* have 0 vectors"):
        module(params, tokens, lengths)

    def embedded(tokens):
        return module._check(jnp.ones((3, SLOTS, 2)), tokens, lengths, grids)

    wrong = np.isnan(jax.jit(embedded)(tokens)).all(axis=(1, 2))
    np.testing.assert_array_equal(wrong, [True, False, False])


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vision", {"out_dim": 24}, "out_dim=24, but the transformer has width=32"),
        ("transformer", {"rope_sections": ()}, r"rope_sections=\(\); give three"),
        ("transformer", {"vocab_size": 40}, "picture_token=45 is not in the vocabulary of 40"),
    ],
)
def test_parts_that_do_not_fit_are_refused(part, changes, message):
    module = qwen_vl_torch.twins()[1]
    changed = dataclasses.replace(getattr(module, part), **changes)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(module, **{part: changed})


# transformers' count for the released config.json, on its meta device.
RELEASED = {"qwen2.5-vl-3b": 3_754_622_976, "qwen2.5-vl-7b": 8_292_166_656}


@pytest.mark.parametrize("name", QWEN_VL_SIZES)
def test_the_named_sizes_have_the_released_parameter_counts(name):
    assert QWEN_VL_SIZES[name]().param_count() == RELEASED[name]


def test_bfloat16_computes_in_bfloat16_and_gives_fp32_logits():
    model = dataclasses.replace(qwen_vl_torch.twins()[1], compute_dtype="bfloat16")
    tokens, lengths, patches, grids = inputs()

    def run(params):
        pictures = model.look(params, patches, grids)
        hidden, cache = model(params, tokens, lengths, pictures, grids, model.init_cache(3, 30))
        return pictures, hidden, cache.k, model.logits(params, hidden)

    *low, logits = jax.eval_shape(run, model.abstract())
    assert [one.dtype for one in low] == [jnp.bfloat16] * 3 and logits.dtype == jnp.float32
