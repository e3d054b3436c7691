"""Schedules and the AdamW update, against closed forms and torch."""

from __future__ import annotations

import numpy as np
import optax
import pytest

from experiments import base
from unicom_jax.core.module import ParamSpec
from unicom_jax.training.optimizers import make_optimizer, make_schedule

SPECS = {"kernel": ParamSpec((3, 2), ("embed", None)), "bias": ParamSpec((2,), (None,))}


def test_warm_up_rises_linearly_to_the_peak():
    schedule = make_schedule(base.training(learning_rate=1.0, warmup_steps=10), 100)
    np.testing.assert_allclose(
        [schedule(s) for s in (0, 4, 9, 10, 99)], [0.1, 0.5, 1, 1, 1], rtol=1e-6
    )


@pytest.mark.parametrize(("shape", "half"), [("constant", 1.0), ("cosine", 0.5), ("linear", 0.5)])
def test_decay_is_half_way_down_in_the_middle(shape, half):
    schedule = make_schedule(base.training(learning_rate=1.0, warmup_steps=0, schedule=shape), 100)
    np.testing.assert_allclose(schedule(50), half, atol=1e-6)


def test_wsd_stays_at_the_peak_and_falls_to_zero_over_the_last_steps():
    config = base.training(learning_rate=1.0, warmup_steps=10, schedule="wsd", decay_share=0.2)
    schedule = make_schedule(config, 100)
    rates = [schedule(step) for step in (0, 10, 50, 80, 85, 90, 100)]
    np.testing.assert_allclose(rates, [0.1, 1, 1, 1, 0.75, 0.5, 0], atol=1e-6)


def test_a_longer_wsd_run_agrees_with_a_shorter_one_until_that_one_decays():
    config = base.training(learning_rate=1.0, warmup_steps=10, schedule="wsd", decay_share=0.1)
    short, long = make_schedule(config, 100), make_schedule(config, 300)
    assert [float(short(s)) for s in range(90)] == [float(long(s)) for s in range(90)]
    assert short(95) < long(95) == 1.0


def test_an_unknown_schedule_or_optimizer_names_the_choices():
    with pytest.raises(ValueError, match="constant, cosine, linear, wsd"):
        make_schedule(base.training(schedule="step"), 10)
    with pytest.raises(ValueError, match="adamw, muon"):
        make_optimizer(base.training(optimizer="sgd"), SPECS, 10)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_matrices_and_tables_decay_and_nothing_else(name):
    specs = {**SPECS, "table": ParamSpec((4, 2), ("vocab", "embed"))}
    settings = base.training(optimizer=name, warmup_steps=0, learning_rate=0.1, weight_decay=0.3)
    optimizer, _ = make_optimizer(settings, specs, 10)
    params = {key: np.ones(spec.shape, np.float32) for key, spec in specs.items()}
    still = {key: np.zeros(spec.shape, np.float32) for key, spec in specs.items()}
    updates, _ = optimizer.update(still, optimizer.init(params), params)
    left = {key: float(np.mean(1.0 + update)) for key, update in updates.items()}
    assert left == pytest.approx({"kernel": 0.97, "table": 0.97, "bias": 1.0})


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_eps_bounds_the_updates_of_small_gradients(name):
    def step(eps):
        settings = base.training(optimizer=name, warmup_steps=0, learning_rate=1.0, eps=eps)
        optimizer, _ = make_optimizer(settings, SPECS, 10)
        params = {key: np.zeros(spec.shape, np.float32) for key, spec in SPECS.items()}
        small = {key: np.full(spec.shape, 1e-4, np.float32) for key, spec in SPECS.items()}
        updates, _ = optimizer.update(small, optimizer.init(params), params)
        return {key: float(np.abs(update).mean()) for key, update in updates.items()}

    usual, bounded = step(1e-8), step(1.0)
    # Muon's iteration makes up for some of it in a matrix.
    assert bounded["bias"] < 0.01 * usual["bias"] and bounded["kernel"] < 0.5 * usual["kernel"]


def test_adamw_equals_torch_with_decay_on_matrices_only():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    params = {"kernel": rng.standard_normal((3, 2)), "bias": rng.standard_normal(2)}
    params = {name: value.astype(np.float32) for name, value in params.items()}
    settings = base.training(warmup_steps=0, learning_rate=0.1, weight_decay=0.3, clip_norm=1e9)
    optimizer, _ = make_optimizer(settings, SPECS, 10)
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    groups = [
        {"params": [theirs["kernel"]], "weight_decay": 0.3},
        {"params": [theirs["bias"]], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95), eps=settings.eps)
    ours, state = params, optimizer.init(params)
    for _ in range(5):
        grads = {n: rng.standard_normal(v.shape).astype(np.float32) for n, v in params.items()}
        updates, state = optimizer.update(grads, state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, value in theirs.items():
            value.grad = torch.tensor(grads[name])
        reference.step()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value.detach().numpy(), rtol=1e-5, atol=1e-6)
