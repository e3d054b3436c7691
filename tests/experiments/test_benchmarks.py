"""The contestants of `make bench` take the same step, and the timing does what it says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.build import sequence_config
from data_pipelines.segments import UNDERSTOOD, Image, Text
from data_pipelines.sequences.sequence import build_prefix
from experiments.benchmarks import bare, ours, pipeline
from experiments.benchmarks.race import Contestant, race, ratios
from experiments.benchmarks.sampling_worker import picture_slots
from experiments.benchmarks.standard import FLOW_WEIGHT, TEXT_WEIGHT, Standard
from tests.data.samples import tokenizer
from tests.families.documents import lively
from tests.tiny import tiny_config
from unicom_jax.core.losses import mean
from unicom_jax.families.images import draw_noise

SMALL = Standard(
    width=32,
    depth=2,
    heads=4,
    kv_heads=2,
    mlp_dim=48,
    vocab_size=64,
    text_tokens=12,
    grid=2,
    latent_dim=8,
    rows=2,
)


@pytest.fixture(scope="module")
def weights():
    """Random weights everywhere, so that nothing is hidden by a head that starts at zero."""
    return lively(ours.make_model(SMALL))


def both_losses():
    """Our loss and the bare one as functions of the weights, with one draw of time and noise."""
    batch = jax.tree.map(jnp.asarray, ours.make_batch(SMALL))
    frozen, stage = ours.images(SMALL), ours.make_stage(SMALL)
    row_keys = jax.random.split(jax.random.key(2), SMALL.rows)
    clean = jnp.asarray(SMALL.latents())
    time, noise = (x[:, 0] for x in draw_noise((1, *clean.shape[1:]), row_keys))
    bare_loss, tokens = bare.make_loss(SMALL), jnp.asarray(SMALL.tokens())

    def our_loss(params):
        terms = stage.loss(params, frozen, batch, row_keys)
        return FLOW_WEIGHT * mean(terms["flow"]) + TEXT_WEIGHT * mean(terms["text"])

    return our_loss, lambda params: bare_loss(params, tokens, clean, time, noise)


def test_our_step_and_the_bare_one_have_the_same_loss_and_gradients(weights):
    (a, ours_grad), (b, bare_grad) = (
        jax.jit(jax.value_and_grad(f))(weights) for f in both_losses()
    )
    assert float(a) == pytest.approx(float(b), rel=1e-6)
    ours_flat, tree = jax.tree.flatten(ours_grad)
    for x, y in zip(ours_flat, tree.flatten_up_to(bare_grad), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * float(jnp.abs(y).max() + 1.0))


def test_both_contestants_lower_their_loss():
    params = jax.jit(ours.make_model(SMALL).init)(jax.random.key(0))
    for contestant in (ours.contestant(SMALL, params), bare.contestant(SMALL, params, 1.05)):
        losses = [contestant.step() for _ in range(30)]
        assert np.mean(losses[-5:]) < np.mean(losses[:5]), contestant.name


def test_contestants_step_in_turns_and_each_round_starts_with_another():
    order = []
    contestants = [Contestant(name, lambda name=name: order.append(name), 0) for name in "abc"]
    race(contestants, rounds=2, warmup=0)
    assert "".join(order) == "abcbca"


def test_ratio_is_ours_over_the_peer_within_a_round():
    seconds = np.array([[1.0, 2.0], [4.0, 4.0], [3.0, 2.0]])
    ours_itself, peer = ratios(seconds)
    assert (ours_itself.low, ours_itself.median, ours_itself.high) == (1.0, 1.0, 1.0)
    assert (peer.low, peer.median, peer.high) == (0.75, 1.0, 1.25)


def test_pipeline_rates_count_examples_and_used_slots():
    sizes = Standard(rows=2, grid=4)
    delivery = pipeline.deliver("small", sizes, pictures=8, warmup=1, samples=1)
    slots_per_example = delivery.tokens.median / delivery.examples.median
    assert sizes.image_tokens < slots_per_example < sizes.slots


@pytest.mark.parametrize(
    ("changes", "slots"),
    [
        ({}, 16),
        ({"unified__fold": 2}, 4),
        ({"unified__understanding": "latents", "codec__pool": 2}, 4),
        ({"unified__understanding": "sequence_concat"}, 32),
    ],
)
def test_a_peer_that_writes_reads_as_many_tokens_as_our_model(changes, slots):
    config = tiny_config(data__patch=8, **changes)
    assert picture_slots(config) == slots
    picture = np.zeros((32, 32, 3), np.uint8)
    words, both = (
        build_prefix([*pictures, Text("red")], tokenizer(), sequence_config(config))
        for pictures in ([], [Image(picture, UNDERSTOOD)])
    )
    marks = 2  # of the picture
    assert len(both) - len(words) == slots + marks
