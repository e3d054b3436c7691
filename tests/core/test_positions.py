"""Generalised 2-D rotary positions."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core.positions import (
    RopeScaling,
    apply_paired_rope,
    apply_rope,
    axial_rope,
    image_positions,
    picture_positions,
    position_count,
    rope,
)

KEY = jax.random.key(0)


def test_plain_positions_of_an_image_are_those_of_as_many_words():
    words = 5 + np.arange(6)
    np.testing.assert_array_equal(
        image_positions(5, 2, 3, "plain"), np.stack([words, words], axis=-1)
    )
    with pytest.raises(ValueError, match="image_positions='spiral' is unknown; use one of grid, "):
        image_positions(0, 2, 3, "spiral")


def _diagonal(length: int) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(length)[:, None], (1, length, 2))


def _reference_1d(x: np.ndarray, theta: float) -> np.ndarray:
    """RoPE as complex numbers: channel pair (i, i + D/2) of slot p turns by p * theta^(-2i/D)."""
    half = x.shape[-1] // 2
    turns = np.exp(1j * np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half))
    turned = (x[..., :half] + 1j * x[..., half:]) * turns[None, :, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)


class WithAndWithoutJit(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_on_pure_text_the_rotation_is_one_dimensional_rope(self):
        x = jax.random.normal(KEY, (1, 9, 2, 8))
        turn = self.variant(lambda x, positions: apply_rope(x, *rope(positions, 8, 1e4)))
        turned = turn(x, _diagonal(9))
        np.testing.assert_allclose(turned, _reference_1d(np.asarray(x), 1e4), atol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_each_axis_turns_its_own_neighbouring_channels(self):
        x = np.asarray(jax.random.normal(KEY, (1, 5, 2, 10)))
        places = np.stack([np.arange(5), 3 * np.arange(5)], axis=-1)
        turn = self.variant(lambda x, at: apply_paired_rope(x, *axial_rope(at, (4, 6), 1e2)))
        turned = turn(x, places[None])
        pairs = x[..., ::2] + 1j * x[..., 1::2]
        angles = [
            places[:, a, None] * 1e2 ** (-2 * np.arange(d // 2) / d) for a, d in ((0, 4), (1, 6))
        ]
        pairs = pairs * np.exp(1j * np.concatenate(angles, axis=1))[:, None]
        expected = np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)
        np.testing.assert_allclose(turned, expected, atol=1e-5)


def test_text_rotation_equals_the_qwen_rotation_of_transformers():
    torch = pytest.importorskip("torch")
    qwen = pytest.importorskip("transformers.models.qwen2.modeling_qwen2")
    from transformers import Qwen2Config

    config = Qwen2Config(
        hidden_size=32,
        num_attention_heads=2,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
    )
    x = np.asarray(jax.random.normal(KEY, (1, 40, 2, 16)))
    tensor = torch.from_numpy(x.copy()).transpose(1, 2)
    cos, sin = qwen.Qwen2RotaryEmbedding(config)(tensor, torch.arange(40)[None])
    reference, _ = qwen.apply_rotary_pos_emb(tensor, tensor, cos, sin)
    ours = apply_rope(jnp.asarray(x), *rope(_diagonal(40), 16, 1e6))
    np.testing.assert_allclose(ours, reference.transpose(1, 2), atol=1e-5)


SECTIONS = (2, 3, 3)


@pytest.mark.parametrize("kind", ["default", "yarn"])
def test_sections_turn_as_in_the_qwen_vl_rotation_of_transformers(kind):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
    from transformers import Qwen2_5_VLTextConfig

    parameters = {"rope_theta": 1e4, "rope_type": kind, "mrope_section": list(SECTIONS)}
    scaling = RopeScaling()
    if kind == "yarn":
        parameters |= {"factor": 4.0, "original_max_position_embeddings": 64}
        scaling = RopeScaling("yarn", 4.0, 64)
    config = Qwen2_5_VLTextConfig(hidden_size=32, num_attention_heads=2, rope_parameters=parameters)
    positions = np.random.default_rng(0).integers(0, 200, (2, 9, 3))
    ids = torch.from_numpy(np.moveaxis(positions, -1, 0).copy())
    expected = theirs.Qwen2_5_VLRotaryEmbedding(config)(torch.zeros(1), ids)
    ours = rope(jnp.asarray(positions), 16, 1e4, scaling, SECTIONS)
    for one, other in zip(ours, expected, strict=True):  # theirs has both halves of a head
        np.testing.assert_allclose(np.tile(one, 2), other, atol=1e-5)


def test_positions_of_other_axes_than_the_sections_are_refused():
    with pytest.raises(ValueError, match=r"positions have 2 coordinates, but .* take 3"):
        rope(_diagonal(4), 16, 1e4, sections=SECTIONS)


def test_text_after_a_picture_continues_past_its_longer_side():
    """Text, a picture of 2 x 3 at position 1, text from 1 + 3, and padding."""
    slots = np.arange(10)[None]
    positions, after, found = picture_positions(
        jnp.asarray((slots >= 1) & (slots < 7)), jnp.asarray(slots < 9), jnp.asarray([[(2, 3)]])
    )
    time = [0, 1, 1, 1, 1, 1, 1, 4, 5, 0]
    row = [0, 1, 1, 1, 2, 2, 2, 4, 5, 0]
    column = [0, 1, 2, 3, 1, 2, 3, 4, 5, 0]
    np.testing.assert_array_equal(positions[0].T, [time, row, column])
    np.testing.assert_array_equal(after, [6])
    np.testing.assert_array_equal(found[0, :, 1], [0, 0, 1, 2, 3, 4, 5, 0, 0, 0])


@pytest.mark.parametrize("axis, turned", [(0, {0, 2}), (1, {1, 3})], ids=["y", "x"])
def test_even_pairs_turn_with_y_and_odd_pairs_with_x(axis, turned):
    positions = jnp.zeros((1, 1, 2)).at[0, 0, axis].set(3)
    _, sin = rope(positions, 8, 10.0)
    assert set(np.flatnonzero(sin[0, 0])) == turned


def test_scores_depend_on_the_difference_of_positions_only():
    q, k = jax.random.normal(KEY, (2, 1, 1, 1, 16))

    def score(at_q, at_k):
        q_, k_ = (
            apply_rope(x, *rope(jnp.array([[at]]), 16, 1e4)) for x, at in ((q, at_q), (k, at_k))
        )
        return jnp.sum(q_ * k_)

    np.testing.assert_allclose(score((5, 9), (2, 4)), score((25, 19), (22, 14)), rtol=1e-4)


def test_bfloat16_stays_bfloat16_and_is_turned_in_fp32():
    x = jax.random.normal(KEY, (1, 300, 1, 8))
    angles = rope(_diagonal(300), 8, 1e4)
    low = apply_rope(x.astype(jnp.bfloat16), *angles)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), apply_rope(x, *angles), atol=0.04)


def test_an_axis_of_odd_channels_is_refused():
    with pytest.raises(ValueError, match=r"one of \(4, 3\) is odd"):
        axial_rope(jnp.zeros((1, 1, 2)), (4, 3), 1e4)


def test_an_odd_head_dim_is_refused():
    with pytest.raises(ValueError, match="head_dim 7 is odd"):
        rope(_diagonal(2), 7, 1e4)


def test_positions_of_a_two_by_four_image_after_ten_text_tokens():
    """n = 8 tokens: rows begin at 10 + (8 - 2) // 2 = 13, columns at 10 + (8 - 4) // 2 = 12."""
    expected = [(13, 12), (13, 13), (13, 14), (13, 15), (14, 12), (14, 13), (14, 14), (14, 15)]
    np.testing.assert_array_equal(image_positions(10, 2, 4), expected)


def test_halves_are_rounded_down():
    np.testing.assert_array_equal(image_positions(0, 1, 2), [(0, 0), (0, 1)])


@pytest.mark.parametrize("rows, cols", [(1, 1), (3, 3), (2, 8), (7, 3)])
def test_an_image_stays_within_the_indices_it_takes_from_the_text(rows, cols):
    positions = image_positions(5, rows, cols)
    assert positions.dtype == np.int32
    assert positions.min() >= 5 and positions.max() < 5 + rows * cols
    assert len(np.unique(positions, axis=0)) == rows * cols


@pytest.mark.parametrize(("rows", "cols"), [(2, 3), (4, 1), (1, 1)])
def test_a_written_image_has_the_rows_and_columns_of_mrope(rows, cols):
    count, start = rows * cols, 3
    is_picture = np.array([[False] * start + [True] * count + [False]])
    used = np.ones_like(is_picture)
    places, after, _ = picture_positions(is_picture, used, np.array([[[rows, cols]]]))
    written = image_positions(start, rows, cols, "mrope")
    np.testing.assert_array_equal(written, places[0, start:-1, 1:])
    np.testing.assert_array_equal(places[0, start:-1, 0], start)
    assert int(after[0]) == start + position_count(rows, cols, "mrope") + 1
