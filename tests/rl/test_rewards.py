"""Rewards on pictures and words whose score is known."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.images import patchify
from data_pipelines.scenes.agreement import score_caption
from data_pipelines.scenes.long_captions import long_caption, score_long
from data_pipelines.scenes.render import render
from data_pipelines.scenes.scene import Scene, SceneObject
from unicom_jax.core.pixels import to_bytes, to_unit
from unicom_jax.models.vision_encoder import VisionEncoder
from unicom_jax.rl import rewards
from unicom_jax.rl.samples import Originals, Samples

PATCH, SIDE = 16, 64
RED = SceneObject("circle", "red", "large", 0.24, 0.5)
BLUE = SceneObject("star", "blue", "small", 0.76, 0.24)
PAIR = Scene((RED, BLUE), "white", SIDE, SIDE)
GREEN = dataclasses.replace(PAIR, objects=(dataclasses.replace(RED, colour="green"), BLUE))
ALONE = dataclasses.replace(PAIR, objects=(RED,))
GRIDS = jnp.full((3, 2), SIDE // PATCH)


def cut(*scenes):
    return jnp.stack([patchify(render(scene), PATCH) for scene in scenes])


ORIGINALS = Originals(cut(PAIR, PAIR, PAIR), GRIDS)
DRAWN = Samples(patches=to_unit(cut(PAIR, GREEN, ALONE)))


def test_the_judge_counts_facts_that_were_kept_lost_and_invented():
    """9 facts. A wrong colour: 8 kept, 1 lost, 1 invented. A missing object: 5 kept, 4 lost."""
    found = jax.jit(rewards.ScenesJudge(PATCH))({}, ORIGINALS, DRAWN)
    np.testing.assert_allclose(found, [1.0, 8 / 10, 5 / 9], rtol=1e-6)


def tokens_of(*texts):
    """Bytes as tokens, padded with -1."""
    tokens = np.full((len(texts), max(map(len, texts))), -1)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = list(text.encode())
    return jnp.array(tokens)


def decode(ids):
    return bytes(ids).decode()


def test_a_drawing_is_correct_if_it_has_all_that_its_caption_says_and_nothing_else():
    """Drawings: a red circle and a blue star; a green circle and the star; the red circle."""
    reward = jax.jit(rewards.CaptionDrawn(decode, PATCH))

    def found(*texts):
        return reward({}, ORIGINALS, DRAWN.replace(tokens=tokens_of(*texts))).tolist()

    both = "a circle and a star"
    assert found(both, both, both) == [1, 1, 0]
    assert found("a red circle left of a blue star", *["a red circle"] * 2) == [1, 0, 1]
    assert found("a red circle right of a blue star", "a green circle", "words") == [0, 0, 0]
    on_white = "a red circle on a white background"
    assert found(on_white, on_white, on_white) == [0, 0, 1]


def test_a_caption_is_scored_against_the_picture_by_the_judge():
    tokens = tokens_of(*(long_caption(scene) for scene in (PAIR, GREEN, ALONE)))
    reward = rewards.CaptionFacts(decode, PATCH, score_long)
    found = jax.jit(reward)({}, ORIGINALS, Samples(tokens=tokens))
    # "exactly one object" of two is an invented fact too
    np.testing.assert_allclose(found, [1.0, 8 / 10, 5 / 10], rtol=1e-6)


def test_a_short_caption_is_scored_by_its_facts_about_single_objects():
    """9 facts: 4 of each object, and the ground."""

    def found(text):
        reward = jax.jit(rewards.CaptionFacts(decode, PATCH, score_caption))
        one = Originals(cut(PAIR), GRIDS[:1])
        return float(reward({}, one, Samples(tokens=tokens_of(text)))[0])

    red, blue = "a large red circle on the left", "a small blue star at the top right"
    assert found(f"{red} and {blue} on a white background") == 1.0
    assert found(f"{red} and {blue}") == pytest.approx(8 / 9)
    assert found(red) == pytest.approx(4 / 9)
    assert found("a red circle left of a blue star") == pytest.approx(4 / 9)
    assert found(f"{red.replace('red', 'green')} and {blue}") == pytest.approx(7 / 10)
    assert found("two red circles") == pytest.approx(2 / 11)
    assert found("words") == found("") == 0.0


def test_pixel_distance_is_0_for_the_same_picture_and_knows_no_padding():
    assert float(rewards.pixel_distance({}, ORIGINALS, DRAWN)[0]) == 0.0
    lighter = Samples(patches=to_unit(ORIGINALS.patches) + 0.0)
    half = Originals(ORIGINALS.patches.at[:, 8:].set(7), jnp.array([[2, 4]] * 3))
    np.testing.assert_array_equal(rewards.pixel_distance({}, half, lighter), 0.0)
    black, white = jnp.zeros((1, 1, 3), jnp.uint8), jnp.ones((1, 1, 3))
    apart = rewards.pixel_distance(
        {}, Originals(black, jnp.ones((1, 2), int)), Samples(patches=white)
    )
    np.testing.assert_allclose(apart, [-4.0])


def test_latent_distance_is_of_what_the_codec_makes_of_the_original():
    def encode(frozen, patches, grids):
        return frozen["factor"] * patches[:, :, :2]

    latents = 3.0 * to_unit(ORIGINALS.patches)[:, :, :2] + jnp.array([1.0, 2.0])
    reward = rewards.LatentDistance(encode)
    found = reward({"factor": 3.0}, ORIGINALS, Samples(latents=latents))
    np.testing.assert_allclose(found, -2.5, rtol=1e-5)


def test_reconstruction_is_the_cosine_of_pooled_features():
    vision = VisionEncoder(
        patch_size=PATCH, width=16, depth=1, heads=2, mlp_dim=16, position_rows=4, position_cols=4
    )
    weights = jax.jit(vision.init)(jax.random.key(0))
    found = jax.jit(rewards.FeatureCosine(vision, "eyes"))({"eyes": weights}, ORIGINALS, DRAWN)
    pool = jax.jit(lambda x: vision.pool(weights, vision(weights, x, GRIDS), GRIDS))
    pooled = [np.asarray(pool(x)) for x in (to_unit(ORIGINALS.patches), DRAWN.patches)]
    norms = [np.linalg.norm(x, axis=1) for x in pooled]
    np.testing.assert_allclose(
        found, (pooled[0] * pooled[1]).sum(1) / norms[0] / norms[1], rtol=1e-5
    )
    assert float(found[0]) == pytest.approx(1.0, abs=1e-6) and float(found[2]) < 1.0


def test_gates_look_at_the_end_and_the_length_of_a_caption():
    tokens = jnp.array([[5, 6, 7], [5, -1, -1], [-1, -1, -1]])
    samples = Samples(tokens=tokens, ended=jnp.array([True, False, True]))
    np.testing.assert_array_equal(rewards.ended({}, ORIGINALS, samples), [1, 0, 0])
    np.testing.assert_array_equal(rewards.Length(1, 2)({}, ORIGINALS, samples), [0, 1, 0])
    with pytest.raises(ValueError, match="from 3 to 2 tokens is empty"):
        rewards.Length(3, 2)


def test_a_weighted_sum():
    parts = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([10.0, 0.0])}
    np.testing.assert_allclose(rewards.weighted_sum(parts, {"a": 2.0, "b": 0.5}), [7.0, 4.0])


def test_a_reward_of_the_users_own_is_found_by_its_dotted_path():
    assert rewards.named("unicom_jax.rl.rewards.pixel_distance") is rewards.pixel_distance
    assert rewards.named("unicom_jax.rl.rewards:ended") is rewards.ended
    for path in ("unicom_jax.rl.rewards.nothing", "no_such_module.reward", "not a name"):
        with pytest.raises(ValueError, match="names no function"):
            rewards.named(path)
    with pytest.raises(ValueError, match="is dict, which cannot be called"):
        rewards.named("unicom_jax.core.flow_steps.SAMPLERS")


def test_the_host_is_called_with_each_devices_rows_in_their_order():
    calls = []

    def score(values):
        calls.append(len(values))
        return values.sum(axis=1)

    values = jnp.arange(8.0).reshape(4, 2)
    found = jax.jit(partial(rewards.on_host, score))(values)
    np.testing.assert_array_equal(found, [1, 5, 9, 13])
    assert calls == [4]


def test_rounding_to_bytes_hides_what_no_picture_file_can_hold():
    near = Samples(patches=to_unit(ORIGINALS.patches) + 1e-3)
    np.testing.assert_array_equal(to_bytes(near.patches), ORIGINALS.patches)
    np.testing.assert_array_equal(rewards.pixel_distance({}, ORIGINALS, near), 0.0)
