"""Updates of a model that takes over the settings of a smaller one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import base
from tests.core.test_transfer import config as unified_config
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.module import Module, ParamSpec, init_params, map_specs, stack_specs
from unicom_jax.core.positions import rope
from unicom_jax.core.transfer import growth, rescaled
from unicom_jax.models.transformer import Transformer
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.training.assemble import make_trainer
from unicom_jax.training.optimizers import make_optimizer
from unicom_jax.training.state import split
from unicom_jax.training.transfer import factors, for_duration

SETTINGS = base.training(learning_rate=0.03, warmup_steps=0, weight_decay=0.2, clip_norm=1e9)


class Residual(Module):
    """x = table[token]; x += down relu(up x), depth times; logits = head x."""

    def __init__(self, width: int, depth: int):
        self.width, self.depth = width, depth

    def specs(self):
        square = ParamSpec((self.width, self.width), ("embed", None))
        block = {"mlp": {"up": {"kernel": square}, "down": {"kernel": square}}}
        return {
            "table": ParamSpec((5, self.width), ("vocab", "embed")),
            "blocks": stack_specs(block, self.depth),
            "head": ParamSpec((self.width, 5), ("embed", "vocab")),
        }


def logits(params, branch=1.0, out=1.0):
    x, mlp = params["table"], params["blocks"]["mlp"]
    for up, down in zip(mlp["up"]["kernel"], mlp["down"]["kernel"], strict=True):
        x = x + branch * jax.nn.relu(x @ up) @ down
    return out * x @ params["head"]


def loss(params, **multipliers):
    labels = jnp.array([2, 0, 4, 1, 3])
    scores = logits(params, **multipliers)
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def completep(params, wide, deep, eps):
    """AdamW as Table 1 of CompleteP has it, for a model with explicit multipliers."""
    rate, decay = SETTINGS.learning_rate, SETTINGS.weight_decay

    def adamw(lr, wd, eps):
        return optax.adamw(lr, b1=SETTINGS.b1, b2=SETTINGS.b2, eps=eps, weight_decay=wd)

    rules = {
        "table": adamw(rate, decay, eps / wide),
        "hidden": adamw(rate / wide, decay * wide, eps / wide / deep),
        # The table has the multiplier 1 / wide outside, and the learning rate of the embedding.
        "head": adamw(rate, decay, eps / wide),
    }
    kinds = jax.tree.map_with_path(
        lambda path, _: path[0].key if path[0].key != "blocks" else "hidden", params
    )
    return optax.partition(rules, kinds)


def test_updates_of_adamw_are_those_of_completep_with_explicit_multipliers():
    wide, deep, eps = 4, 3, 1e-3
    model, tuned = Residual(16, 6), Residual(4, 2)
    grown = growth(model.specs(), tuned.specs())
    plain = init_params(model.specs(), jax.random.key(0))
    theirs = {**plain, "head": plain["head"] * np.sqrt(wide)}  # variance as in the tuned model
    ours = init_params(rescaled(model.specs(), grown), jax.random.key(0))

    own = factors("adamw", model.specs(), tuned.specs(), grown)
    # The head's epsilon: its gradient has no 1 / wide outside, as theirs has.
    optimizer, _ = make_optimizer({**SETTINGS, "eps": eps}, model.specs(), 10, transfer=own)
    reference = completep(theirs, wide, deep, eps)
    state, their_state = optimizer.init(ours), reference.init(theirs)
    multipliers = {"branch": 1 / deep, "out": 1 / wide}
    for _ in range(5):
        np.testing.assert_allclose(
            logits(ours), logits(theirs, **multipliers), rtol=1e-5, atol=1e-6
        )
        updates, state = optimizer.update(jax.grad(loss)(ours), state, ours)
        ours = optax.apply_updates(ours, updates)
        grads = jax.grad(loss)(theirs, **multipliers)
        updates, their_state = reference.update(grads, their_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    assert loss(ours) < 0.9 * loss(init_params(model.specs(), jax.random.key(0)))


@pytest.mark.parametrize(("wide", "deep"), [(4, 1), (1, 3), (8, 2)])
def test_updates_of_muon_have_the_spectral_norm_of_the_tuned_model(wide, deep):
    model, tuned = Residual(4 * wide, 2 * deep), Residual(4, 2)
    settings = {**SETTINGS, "optimizer": "muon", "weight_decay": 0.0}

    def norms(made, transfer):
        params = init_params(made.specs(), jax.random.key(0))
        optimizer, _ = make_optimizer(settings, made.specs(), 10, transfer=transfer)
        noise = init_params(made.specs(), jax.random.key(1))
        updates, _ = optimizer.update(noise, optimizer.init(params), params)
        mlp = updates["blocks"]["mlp"]
        return {n: np.linalg.norm(mlp[n]["kernel"][0], 2) for n in ("up", "down")}

    own = factors("muon", model.specs(), tuned.specs(), growth(model.specs(), tuned.specs()))
    small, large = norms(tuned, None), norms(model, own)
    # Newton-Schulz leaves singular values between .7 and 1.2.
    assert large["up"] / small["up"] == pytest.approx(1, rel=0.3)
    assert large["down"] / small["down"] == pytest.approx(1 / deep, rel=0.3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_decay_of_a_step_is_that_of_the_tuned_model(optimizer):
    model, tuned = Residual(16, 6), Residual(4, 2)
    own = factors(optimizer, model.specs(), tuned.specs(), growth(model.specs(), tuned.specs()))
    assert all(f.learning_rate * f.weight_decay == pytest.approx(1) for f in own.values())


# ---- the size of activations does not depend on the size of the model -------------------------

TUNED = {"width": 32, "heads": 2, "kv_heads": 1, "mlp_dim": 64, "depth": 2}


def size_after_training(optimizer, transfer, steps=6, **ratios):
    """Mean size of the last residual stream after a few steps of training, and of the change of the
    logits; the logits themselves start smaller in a wider model."""

    def transformer(wide=1, deep=1):
        sizes = {n: size * (deep if n == "depth" else wide) for n, size in TUNED.items()}
        return Transformer(vocab_size=64, head_dim=16, tied_head=False, embedding_std=1.0, **sizes)

    model, tuned = transformer(**ratios), transformer()
    specs, own = model.specs(), {}
    if transfer:
        grown = growth(specs, tuned.specs())
        specs = rescaled(specs, grown)
        own = factors(optimizer, specs, tuned.specs(), grown)
    settings = {**SETTINGS, "optimizer": optimizer, "learning_rate": 0.01, "weight_decay": 0.0}
    rule, _ = make_optimizer(settings, specs, steps, transfer=own)
    tokens = jax.random.randint(jax.random.key(2), (4, 33), 0, 64)
    reads, says = tokens[:, :-1], tokens[:, 1:]
    positions = model.text_positions(jnp.broadcast_to(jnp.arange(32), reads.shape))
    stop, nothing = jnp.broadcast_to(jnp.arange(1, 33), reads.shape), jnp.zeros_like(reads)
    mask = MaskIntervals(nothing, stop, nothing, nothing)

    def states(params):
        angles = rope(positions, model.head_dim, model.rope_theta)
        return model._run(params["blocks"], model.embed(params, reads), angles, mask)

    def scores(params):
        return model.logits(params, model.norm(params["norm"], states(params)))

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(scores(params), says).mean()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = rule.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (trained, _), _ = jax.lax.scan(step, (params, rule.init(params)), length=steps)
        change = scores(trained) - scores(params)
        return jnp.abs(states(trained)).mean(), jnp.abs(change).mean()

    return np.array(train(init_params(specs, jax.random.key(0))))


@pytest.fixture(scope="module")
def tuned_size():
    return {name: size_after_training(name, transfer=True) for name in ("adamw", "muon")}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("ratios", [{"wide": 8}, {"deep": 8}])
def test_activations_after_training_do_not_grow_with_the_model(tuned_size, optimizer, ratios):
    """The coordinate check of Yang et al. 2022, Appendix D.1.

    Branches add up incoherently at the start, so that the stream of a deeper model is smaller for
    some steps. The part of the logits that is due to the random initial output layer falls with the
    square root of the width; the rest is constant.
    """
    ratio = size_after_training(optimizer, transfer=True, **ratios) / tuned_size[optimizer]
    assert 0.6 < ratio[0] < 1.1 and 0.4 < ratio[1] < 1.1


@pytest.mark.parametrize("ratios", [{"wide": 8}, {"deep": 8}])
def test_without_rescaling_they_grow(tuned_size, ratios):
    ratio = size_after_training("adamw", transfer=False, **ratios) / tuned_size["adamw"]
    assert ratio[0] > 2


# ---- settings ---------------------------------------------------------------------------------


def test_longer_training_rescales_rate_decay_eps_and_moments():
    given = {**SETTINGS, "steps": 400, "tuned_steps": 100, "eps": 1e-6}
    scaled = for_duration(given)
    assert scaled["learning_rate"] == pytest.approx(0.015)
    assert scaled["weight_decay"] == pytest.approx(0.1)
    assert scaled["eps"] == pytest.approx(2e-6)
    assert (scaled["b1"], scaled["b2"]) == pytest.approx((0.975, 0.9875))
    assert for_duration({**given, "tuned_steps": 0}) == {**given, "tuned_steps": 0}


def trainer_of(**settings):
    config = unified_config()
    config.pretrain.update(settings)
    return make_trainer("pretrain", config, make_mesh("", jax.devices()[:1]), lambda: iter(()))


def test_a_stage_uses_both_keys():
    trainer = trainer_of(steps=400, tuned_steps=100, optimizer="adamw", learning_rate=0.03,
                         schedule="constant", warmup_steps=0, weight_decay=0.0)  # fmt: skip
    assert float(trainer.schedule(10)) == pytest.approx(0.015)
    specs, _ = split(trainer.stage.module.specs(), trainer.stage.freeze)

    @jax.jit
    def first_update():
        ones = map_specs(lambda spec: jnp.ones(spec.shape), specs)
        updates, _ = trainer.optimizer.update(ones, trainer.optimizer.init(ones), ones)
        blocks = updates["transformer"]["blocks"]["attention"]
        leaves = (
            updates["transformer"]["norm"]["scale"],
            *(blocks[name]["kernel"] for name in ("query", "out")),
        )
        return [jnp.max(-leaf) for leaf in leaves]

    rate = 0.015
    expected = [rate, rate / 4, rate / 4 / 3]  # width times 4, depth times 3
    assert [float(one) for one in first_update()] == pytest.approx(expected, rel=1e-3)
