"""Every objective finds the optimum where it is known: a bandit that writes, and a flow in two
dimensions with a reward for one of its two modes.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unicom_jax.core.flow import integrate, integrate_window, interpolate
from unicom_jax.core.flow_steps import SdeStep
from unicom_jax.core.losses import mean
from unicom_jax.rl.advantages import advantages
from unicom_jax.rl.flow_objectives import Awm, FlowGrpo, Nft, window_start
from unicom_jax.rl.policy import Clip
from unicom_jax.rl.text_objectives import TextObjective

GROUP = 16

# ---- a policy that writes two tokens of four -------------------------------------------------

WANTED = jnp.array([[2, 0], [1, 3], [3, 3]])  # by prompt


def text_run(objective, spread, reward, updates=60):
    """Logits (prompts, 2, 4) after training from uniform ones, two updates a rollout."""
    optimizer = optax.adam(0.15)

    def written(logits, tokens):
        logs = jnp.repeat(jax.nn.log_softmax(logits), GROUP, axis=0)
        return jnp.take_along_axis(logs, tokens[..., None], axis=-1)[..., 0]

    def update(carry, key):
        logits, state = carry
        policy = jnp.repeat(logits, GROUP, axis=0)
        tokens = jax.random.categorical(key, policy)
        gained = reward(tokens, key).reshape(-1, GROUP)
        gain, old = advantages(gained, spread).reshape(-1), written(logits, tokens)

        def loss(logits):
            logs = written(logits, tokens)
            return mean(objective.terms(logs, old, old, gain, jnp.ones(tokens.shape))["policy"])

        for _ in range(2):
            updates, state = optimizer.update(jax.grad(loss)(logits), state)
            logits = optax.apply_updates(logits, updates)
        return (logits, state), gained.mean()

    first = jnp.zeros((3, 2, 4))
    keys = jax.random.split(jax.random.key(0), updates)
    (logits, _), _ = jax.jit(partial(jax.lax.scan, update))((first, optimizer.init(first)), keys)
    return logits


def share_of_wanted(logits):
    chances = jax.nn.softmax(logits)
    return np.asarray(jnp.take_along_axis(chances, WANTED[..., None], axis=-1))


def hits(tokens, key):
    return (tokens == jnp.repeat(WANTED, GROUP, axis=0)).mean(axis=1)


@pytest.mark.parametrize(
    ("objective", "spread"),
    [
        (TextObjective(Clip(0.2, 0.2), "own"), "group"),  # GRPO
        (TextObjective(Clip(0.2, 0.2)), "none"),  # Dr.GRPO
        (TextObjective(), "none"),  # Dr.GRPO with DAPO's clip
    ],
)
def test_a_policy_that_writes_finds_the_rewarded_text(objective, spread):
    assert share_of_wanted(text_run(objective, spread, hits)).min() > 0.9


def test_a_random_reward_teaches_no_text():
    def chance(tokens, key):
        return jax.random.uniform(key, tokens.shape[:1])

    assert share_of_wanted(text_run(TextObjective(), "none", chance)).mean() < 0.6


# ---- a flow of two modes --------------------------------------------------------------------

CENTRES = jnp.array([[-2.0, 0.0], [2.0, 0.0]])
SPREAD, STEPS, PROMPTS = 0.4, 8, 4


def velocity(logits, z, t):
    """E[z_1 - ε | z_t] of a mixture of two Gaussians with the weights softmax(logits): the exact
    flow, so that the policy's parameters are the weights of the modes and no more.
    """
    t = jnp.asarray(t).reshape(jnp.shape(t) + (1,) * (z.ndim - jnp.ndim(t)))
    variance = t**2 * SPREAD**2 + (1 - t) ** 2
    apart = z[..., None, :] - t[..., None] * CENTRES
    logs = jax.nn.log_softmax(logits) - 0.5 * jnp.square(apart).sum(-1) / variance
    share = jax.nn.softmax(logs, axis=-1)
    slope = ((t * SPREAD**2 - (1 - t)) / variance)[..., None]
    return jnp.sum(share[..., None] * (CENTRES + slope * apart), axis=-2)


def flow_run(objective, window=0, reward=None, updates=60):
    """Share of drawn samples at the right mode after training from equal weights."""
    rows, sde, optimizer = PROMPTS * GROUP, SdeStep(0.7), optax.adam(0.1)
    reward = reward or (lambda x, key: jnp.where(x[:, 0] > 0, 1.0, 0.0))

    def old_policy_at(logits, x, key):
        """Samples noised again at two times each: times, states and targets."""
        time_key, noise_key = jax.random.split(key)
        time = jax.random.uniform(time_key, (rows, 2), minval=0.02, maxval=0.98)
        noise = jax.random.normal(noise_key, (rows, 2, 2))
        data = jnp.broadcast_to(x[:, None], noise.shape)
        return time, interpolate(data, noise, time), data - noise

    def update(carry, step_and_key):
        logits, state = carry
        number, key = step_and_key
        keys = jax.random.split(key, 4)
        noise, field = jax.random.normal(keys[0], (rows, 2)), partial(velocity, logits)
        if objective.needs_trajectory:
            first = window_start(number, STEPS, window, held=2)
            x, passed = integrate_window(field, noise, STEPS, sde, first, window, key=keys[1])
        else:
            x = integrate(field, noise, STEPS, "heun")
        gained = reward(x, keys[2]).reshape(PROMPTS, GROUP)
        gain = advantages(gained, "batch", clip=5.0).reshape(-1)

        def loss(policy):
            if objective.needs_trajectory:
                logs = jax.vmap(partial(sde.log_prob, partial(velocity, policy)))(
                    passed.states[:-1], passed.states[1:], passed.times[:-1], passed.times[1:]
                )
                kl = jnp.zeros_like(logs.T)
                return mean(objective.terms(logs.T, passed.log_probs.T, gain, kl)["policy"])
            time, noisy, target = old_policy_at(logits, x, keys[3])
            new, old = (velocity(weights, noisy, time) for weights in (policy, logits))
            return mean(objective.terms(new, old, target, time, gain, old)["policy"])

        updates, state = optimizer.update(jax.grad(loss)(logits), state)
        return (optax.apply_updates(logits, updates), state), gained.mean()

    first = jnp.zeros(2)
    keys = jax.random.split(jax.random.key(1), updates)
    train = jax.jit(partial(jax.lax.scan, update))
    (logits, _), _ = train((first, optimizer.init(first)), (jnp.arange(updates), keys))
    drawn = integrate(partial(velocity, logits), jax.random.normal(jax.random.key(2), (512, 2)), 20)
    return float((drawn[:, 0] > 0).mean())


def test_the_modes_are_drawn_alike_before_training():
    assert abs(flow_run(Awm(), updates=1) - 0.5) < 0.12


@pytest.mark.parametrize(
    ("objective", "window"),
    [
        (FlowGrpo(Clip(0.1, 0.1)), STEPS - 1),  # Flow-GRPO: all steps but the last
        (FlowGrpo(Clip(0.1, 0.1)), 2),  # MixGRPO: a window that moves
        (Nft(), 0),
        (Nft(beta=0.1), 0),
        (Nft(adaptive=False), 0),
        (Awm(), 0),
    ],
)
def test_a_flow_finds_the_rewarded_mode(objective, window):
    assert flow_run(objective, window) > 0.95


def test_the_other_mode_is_found_where_it_is_rewarded():
    """So it is the reward that chooses, and not a leaning of the objective."""
    assert flow_run(Nft(), reward=lambda x, key: jnp.where(x[:, 0] < 0, 1.0, 0.0)) < 0.05
