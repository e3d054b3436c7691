"""Parameter groups against optimisers made by hand, and what is refused."""

from __future__ import annotations

import json

import chex
import jax
import numpy as np
import optax
import pytest

from experiments import base
from tests.data.samples import tokenizer
from tests.tiny import tiny_config
from tests.training.test_step import TwoLayers, batch, stage, trainer
from unicom_jax.config import ConfigError, apply_overrides, from_json, to_json
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.training.assemble import make_trainer
from unicom_jax.training.groups import read_groups
from unicom_jax.training.optimizers import make_optimizer, make_schedule

SPECS = TwoLayers().specs()
GIVEN = (
    {"match": "first/bias", "learning_rate": 0.5, "name": "offsets"},
    {"match": "first/.*", "learning_rate": 0.1, "weight_decay": 0.0},
    {"match": "second/kernel", "weight_decay": 3.0},
)


def settings(**changes):
    return base.training(
        learning_rate=0.1, warmup_steps=2, weight_decay=0.3, clip_norm=1e9, **changes
    )


def trees(count: int):
    """Weights, and gradients of so many steps."""
    rng = np.random.default_rng(0)

    def tree():
        return jax.tree.map(
            lambda x: rng.standard_normal(x.shape).astype(np.float32), TwoLayers().abstract()
        )

    return tree(), [tree() for _ in range(count)]


def trained(optimizer, params, grads):
    state = optimizer.init(params)
    for one in grads:
        updates, state = optimizer.update(one, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


# XLA may keep more digits than bfloat16 has where optax's own steps run one by one.
@pytest.mark.parametrize(("mu_dtype", "rtol"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_each_group_trains_as_by_an_adamw_of_its_own(mu_dtype, rtol):
    config = settings(mu_dtype=mu_dtype)
    schedule = make_schedule(config, 10)

    def own(rate, decay):
        return optax.adamw(
            lambda n: rate * schedule(n), b1=config.b1, b2=config.b2, eps=config.eps,
            weight_decay=decay, mu_dtype=mu_dtype,
        )  # fmt: skip

    labels = {
        "first": {"bias": "offsets", "kernel": "slow"},
        "second": {"bias": "plain", "kernel": "heavy"},
    }
    by_hand = optax.partition(
        {
            "offsets": own(0.5, 0.0),  # biases never decay
            "slow": own(0.1, 0.0),
            "plain": own(1.0, 0.0),
            "heavy": own(1.0, 0.9),
        },
        labels,
    )
    ours, _ = make_optimizer(config, SPECS, 10, read_groups(GIVEN, SPECS))
    params, grads = trees(4)
    (left, _), (right, _) = trained(ours, params, grads), trained(by_hand, params, grads)
    chex.assert_trees_all_close(left, right, rtol=rtol)


def test_a_factor_scales_muons_updates_and_its_decay():
    config, params, grads = settings(optimizer="muon"), *trees(1)
    plain, _ = trained(make_optimizer(config, SPECS, 10)[0], params, grads)
    groups = read_groups(({"match": "first/.*", "learning_rate": 0.25},), SPECS)
    ours, _ = trained(make_optimizer(config, SPECS, 10, groups)[0], params, grads)
    for part, factor in (("first", 0.25), ("second", 1.0)):
        for name, start in params[part].items():
            moved, expected = ours[part][name] - start, factor * (plain[part][name] - start)
            np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_groups_leave_the_shape_of_the_optimizers_state_alone(name):
    """So that factors may change when a run is resumed."""
    config, (params, _) = settings(optimizer=name), trees(0)
    states = [
        make_optimizer(config, SPECS, 10, groups)[0].init(params)
        for groups in (None, read_groups(GIVEN, SPECS))
    ]
    chex.assert_trees_all_equal_structs(*states)


def test_bfloat16_moments_take_half_the_bytes_and_no_other_state_changes():
    params, _ = trees(0)
    for name in ("adamw", "muon"):
        plain, small = (
            make_optimizer(settings(optimizer=name, mu_dtype=dtype), SPECS, 10)[0].init(params)
            for dtype in ("float32", "bfloat16")
        )
        dtypes = [
            (str(a.dtype), str(b.dtype))
            for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(small), strict=True)
        ]
        changed = [pair for pair in dtypes if pair[0] != pair[1]]
        assert changed == [("float32", "bfloat16")] * 4  # one first moment for each weight


def test_bfloat16_muon_moves_as_fp32_muon_but_for_rounding():
    params, grads = trees(3)
    left, right = (
        trained(make_optimizer(settings(optimizer="muon", mu_dtype=d), SPECS, 10)[0], params, grads)
        for d in ("float32", "bfloat16")
    )
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), left[0], params)
    error = jax.tree.map(lambda a, b: np.abs(a - b).max(), left[0], right[0])
    assert all(
        0 < e < 0.05 * m
        for e, m in zip(jax.tree.leaves(error), jax.tree.leaves(moved), strict=True)
    )


# ---- what is read, refused and reported ---------------------------------------------------------


def test_the_first_group_that_matches_has_the_weight_and_frozen_ones_are_exact():
    given = ({"match": "first/bias"}, {"match": "first/.*", "frozen": True})
    groups = read_groups(given, SPECS)
    assert groups.of(("first", "bias")).match == "first/bias"
    assert groups.of(("second", "bias")) is None
    assert groups.frozen() == ("first/kernel$",)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"match": "frist/.*"}, r"match='frist/\.\*' matches no weight .* begin with first/bias"),
        ({"match": "first/("}, "is not a regular expression"),
        ({"match": "first", "rate": 0.1}, "'rate' is unknown; a group has match, name, learning"),
        ({"match": "first", "learning_rate": "0.1"}, "learning_rate='0.1' should be a float"),
        ({"match": "first", "learning_rate": 0.0}, "to keep weights as they are, set frozen=True"),
        ({"match": "first", "weight_decay": -1.0}, "weight_decay=-1.0 is a factor of at least 0"),
        ("first/.*", "is not a group; write"),
    ],
)
def test_a_group_that_cannot_be_is_named_with_its_key(given, line):
    with pytest.raises(ValueError, match=line) as error:
        read_groups((given,), SPECS, "sft.groups")
    assert str(error.value).startswith("sft.groups[0]") and "\n" not in str(error.value)


def test_a_group_behind_one_that_has_all_its_weights_is_an_error():
    with pytest.raises(ValueError, match=r"groups\[1\]: match='first/bias' matches no weight that"):
        read_groups(({"match": "first/.*"}, {"match": "first/bias"}), SPECS)


def test_groups_come_from_flags_and_back_from_json():
    config = tiny_config()
    text = "({'match': 'transformer/.*', 'learning_rate': 0.1, 'name': 'reader'},)"
    apply_overrides(config, [f"--config.pretrain.groups={text}"])
    again = from_json(json.loads(to_json(config)))
    assert again.pretrain.groups == config.pretrain.groups
    module = make_trainer("pretrain", again, make_mesh(), lambda: iter(()))
    assert module.groups.rates() == {"reader": 0.1}
    assert module.groups.label(("transformer", "norm", "scale")) == "reader"
    assert module.groups.label(("head", "output", "bias")) == "head"


def test_a_factor_for_weights_that_the_stage_holds_is_an_error():
    config = tiny_config(pretrain__freeze=("head/.*",))
    config.pretrain.groups = ({"match": "head/output/.*", "learning_rate": 0.1, "name": "out"},)
    with pytest.raises(ConfigError, match="pretrain.groups: 'out' matches only weights that"):
        make_trainer("pretrain", config, make_mesh(), lambda: iter(()))


def test_frozen_groups_have_neither_moments_nor_gradients():
    config = tiny_config()
    config.pretrain.groups = ({"match": "transformer/.*", "frozen": True},)
    one = make_trainer("pretrain", config, make_mesh(), lambda: iter(()))
    shapes = one.abstract_state()
    names = {path[0].key for path, _ in jax.tree.leaves_with_path(shapes.params)}
    assert "transformer" in names
    moments = shapes.opt_state.inner_state[1][0].mu
    assert set(moments) == {"embedding", "head"}


def test_metrics_name_the_rate_and_the_norms_of_each_group():
    groups = read_groups(({"match": "first/.*", "learning_rate": 0.1, "name": "slow"},), SPECS)
    one = trainer(stage(), groups=groups, diagnostics=True)
    state = one.init_state()
    before = jax.tree.map(np.array, state.params)
    state, metrics = one.train_step()(state, {}, batch())
    assert metrics["learning_rate/slow"] == pytest.approx(0.1 * float(metrics["learning_rate"]))
    both = [metrics[f"gradient_norm/{name}"] for name in ("slow", "second")]
    assert metrics["gradient_norm"] == pytest.approx(float(np.hypot(*both)), rel=1e-5)
    for name, part in (("slow", "first"), ("second", "second")):
        leaves = [np.ravel(x) for x in jax.tree.leaves(state.params[part])]
        old = [np.ravel(x) for x in jax.tree.leaves(before[part])]
        weights, moved = np.concatenate(leaves), np.concatenate(leaves) - np.concatenate(old)
        assert metrics[f"parameter_norm/{name}"] == pytest.approx(np.linalg.norm(weights), rel=1e-5)
        assert metrics[f"update_norm/{name}"] == pytest.approx(np.linalg.norm(moved), rel=1e-3)


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_a_rate_rises_over_steps_however_many_updates_these_take(inner_steps):
    config = tiny_config(
        g4u__inner_steps=inner_steps, g4u__warmup_steps=4, g4u__steps=8, g4u__schedule="constant"
    )
    one = make_trainer("g4u", config, make_mesh(), lambda: iter(()), tokenizer())
    rates = [float(one.schedule(update)) for update in range(8 * inner_steps)]
    assert rates.index(max(rates)) == 4 * inner_steps - 1
