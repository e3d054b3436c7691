"""Captioner and drawer as wholes: what their rollouts depend on, and their first gradients."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.data.samples import tokenizer
from tests.rl.conftest import GROUP, MOST
from tests.tiny import tiny_config
from unicom_jax.config import ConfigError
from unicom_jax.models.mmdit import POSITIONS
from unicom_jax.planning.program import abstract_batch
from unicom_jax.rl import captioner as captioners
from unicom_jax.rl.flow_objectives import Nft
from unicom_jax.rl.rows import caption_log_probs, picture_rows
from unicom_jax.runs.stages import PARTS, STAGES, START
from unicom_jax.training.stages.policy import captioner_stage, drawer_stage, joint_stage
from unicom_jax.training.state import split

OWN = {"rewards": {"own": 1.0}, "own_reward": "tests.rl.own.brightness"}


@pytest.fixture(scope="module")
def captioner(made):
    return made(captioner_stage, "g4u", **OWN)


def test_no_hidden_state_that_saw_the_picture_reaches_the_drawer(captioner, monkeypatch):
    """With the words held, other pictures give the same drawings to the last bit; other words give
    others."""
    stage, frozen, batch = captioner
    monkeypatch.setattr(captioners, "write_captions", lambda model, params, *how: params["words"])
    prepare = jax.jit(stage.prepare)

    def drawings(words, patches):
        params = {**frozen[START], "words": words}
        made = prepare(params, frozen, batch._replace(patches=patches), jax.random.key(0))
        return np.asarray(made.scores.parts["own"])

    words = jnp.tile(jnp.array([280, 281, 282, -1, -1]), (2 * GROUP, 1))
    one = drawings(words, batch.patches)
    np.testing.assert_array_equal(one, drawings(words, 255 - batch.patches))
    assert (one != drawings(words.at[:, 1].set(285), batch.patches)).all()


@pytest.fixture(scope="module")
def captions(captioner):
    stage, frozen, batch = captioner
    return jax.jit(stage.prepare)(frozen[START], frozen, batch, jax.random.key(1))


def test_captions_of_a_picture_stand_side_by_side(captions, setting):
    assert captions.tokens.shape == (2 * GROUP, MOST)
    np.testing.assert_array_equal(captions.patches, np.repeat(setting.patches, GROUP, axis=0))
    gained = np.asarray(captions.scores.advantages).reshape(2, GROUP)
    np.testing.assert_allclose(gained.sum(axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(captions.old, captions.reference, rtol=1e-5, atol=1e-6)


def test_the_captioners_first_gradient_is_that_of_reinforce(captioner, captions):
    """The ratio is 1 at the weights that wrote: the gradient is that of -Σ A log π / (rows · T)."""
    stage, frozen, _ = captioner
    keys = jax.random.split(jax.random.key(0), 2 * GROUP)

    def total(params, captions):
        terms = stage.loss(params, frozen, captions, keys)
        return terms["policy"][0] / terms["policy"][1], terms

    (loss, terms), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
        frozen[START], captions
    )
    written = np.asarray(captions.tokens) >= 0
    gained = np.asarray(captions.scores.advantages)[:, None] * written
    assert float(loss) == pytest.approx(-gained.sum() / written.size, abs=1e-5)
    assert float(terms["kl"][0]) == pytest.approx(0.0, abs=1e-5)
    assert float(terms["clip_share"][0]) == 0.0

    def reinforce(params):
        rows, prepared = stage_parts(stage, frozen, captions)
        policy = stage.loss.__self__
        model, template = policy.models.unified, policy.template
        logs = caption_log_probs(model, params, prepared, rows, template, captions.tokens)
        return -jnp.sum(jnp.where(written, gained * logs, 0.0)) / written.size

    expected = jax.jit(jax.grad(reinforce))(frozen[START])
    chex.assert_trees_all_close(gradient, expected, rtol=1e-3, atol=1e-5)
    norm = float(optax.tree.norm(gradient["transformer"]))
    assert norm > 0 and np.isfinite(norm)
    assert float(optax.tree.norm(gradient["head"])) == 0.0


def stage_parts(stage, frozen, captions):
    """The rows of the captions' pictures, and what frozen models make of these."""
    policy = stage.loss.__self__
    rows = picture_rows(policy.template, captions.patches, captions.grids)
    trees = policy.models.family.frozen_of(frozen)
    return rows, policy.models.unified.images.prepare(trees, rows)


@pytest.mark.parametrize("objective", ["nft", pytest.param("awm", marks=pytest.mark.slow), "grpo"])
def test_the_drawer_begins_at_the_policy_that_drew(made, objective):
    """No distance and nothing clipped at the first update, and a gradient all the same."""
    stage, frozen, batch = made(
        drawer_stage, "u4g", objective=objective, times=2, captions="data", **OWN
    )
    drawings = jax.jit(stage.prepare)(frozen[START], frozen, batch, jax.random.key(2))
    keys = jax.random.split(jax.random.key(0), 2 * GROUP)

    def total(params, drawings):
        terms = stage.loss(params, frozen, drawings, keys)
        return terms["policy"][0] / terms["policy"][1], terms

    (_, terms), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(frozen[START], drawings)
    assert float(terms["kl"][0] / terms["kl"][1]) == pytest.approx(0.0, abs=1e-6)
    assert float(terms["length"][0]) == 2 * GROUP
    norm = float(optax.tree.norm(gradient["head"]))
    assert norm > 0 and np.isfinite(norm)
    if objective == "grpo":  # 2 steps of 4, the same density as when they were made
        assert drawings.states.shape[:2] == (2 * GROUP, 3)
        assert float(terms["clip_share"][0]) == 0.0


@pytest.mark.parametrize(
    ("pathway", "prediction", "floor"),
    [("transfusion", "velocity", 0.0), ("transfusion", "data", 0.3), ("query", "data", 0.3)],
)
def test_distances_are_bounded_by_the_floor_of_the_flow_loss(pathway, prediction, floor):
    """Traced, not run."""
    config = tiny_config(
        data__vocab_size=tokenizer().vocab_size,
        unified__pathway=pathway,
        unified__prediction=prediction,
        unified__time_floor=0.3,
        u4g__rewards__latents=1.0,
    )
    floors = []

    @dataclasses.dataclass(frozen=True)
    class Noting(Nft):
        def terms(self, *given, floor):
            floors.append(floor)
            return super().terms(*given, floor=floor)

    policy = drawer_stage("u4g", config, tokenizer()).loss.__self__
    traced(dataclasses.replace(policy, objective=Noting()), config, "u4g")
    assert floors == [floor]


@pytest.mark.parametrize("pathway", ["transfusion", "query", "cheers"])
@pytest.mark.parametrize(
    ("build", "stage"),
    [(captioner_stage, "g4u"), (drawer_stage, "u4g"), (joint_stage, "jointly")],
    ids=["g4u", "u4g", "jointly"],
)
def test_every_family_has_rollouts_and_losses(pathway, build, stage):
    """Traced, not run: shapes, trees of weights, and a gradient for what the stage trains."""
    changes = {f"{stage}__rewards__{reward}": 1.0 for reward in ("latents", "cosine")}
    config = tiny_config(
        unified__pathway=pathway, data__vocab_size=tokenizer().vocab_size, **changes
    )
    samples, terms = traced(build(stage, config, tokenizer()), config, stage)
    rows = config[stage].batch_size * config[stage].group_size
    drawings = config[stage].get("drawings", 1)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(samples)} == {rows, rows * drawings}
    assert {"policy", "kl", "clip_share", "length", "reward", "collapsed"} <= terms.keys()


def traced(policy, config, stage):
    """Samples and terms of a stage, or of the policy that makes them, as shapes alone."""
    needed = STAGES[stage].reads(config)
    abstract = {part: PARTS[part].build(config).abstract() for part in PARTS}
    frozen = {name: of.of(abstract[of.part]) for name, of in needed.items()}
    batch = abstract_batch(config, stage)
    key = jax.eval_shape(lambda: jax.random.key(0))
    samples = jax.eval_shape(policy.prepare, abstract["unified"], frozen, batch, key)
    rows = config[stage].batch_size * config[stage].group_size
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    return samples, jax.eval_shape(policy.loss, abstract["unified"], frozen, samples, keys)


@pytest.mark.parametrize(
    ("pathway", "drawer"),
    [("transfusion", "head"), ("query", "flow_decoder"), ("cheers", "head"), ("uae", "decoder")],
)
def test_the_joint_stage_trains_reader_and_drawer_of_every_family(pathway, drawer):
    changes = {"jointly__rewards__cosine": 0.0, "jointly__rewards__pixels": 1.0}
    if pathway == "uae":
        changes |= {
            "unified__image_positions": "mrope",
            "unified__transformer__rope_sections": (2, 3, 3),
            "unified__transformer__head_dim": 16,
        }
    config = tiny_config(
        unified__pathway=pathway, data__vocab_size=tokenizer().vocab_size, **changes
    )
    stage = joint_stage("jointly", config, tokenizer())
    trained, frozen = split(stage.module.abstract(), stage.freeze)
    assert {"transformer", drawer} <= trained.keys()
    if pathway == "uae":
        assert "vision" not in trained
        assert frozen["decoder"]["transformer"].keys() == {POSITIONS}


def test_guided_drawings_have_no_likelihood_for_grpo():
    config = tiny_config(
        u4g__objective="grpo", u4g__guidance=2.0, data__vocab_size=tokenizer().vocab_size
    )
    with pytest.raises(
        ConfigError, match="u4g.guidance=2: objective grpo can compute the likelihood"
    ):
        drawer_stage("u4g", config, tokenizer())


def test_pictures_of_several_sizes_are_refused():
    config = tiny_config(data__policy="bucket", data__vocab_size=tokenizer().vocab_size)
    with pytest.raises(ConfigError, match="draws and reads pictures of one size"):
        captioner_stage("g4u", config, tokenizer())
