"""Rectified flow: path, time, loss, integration and guidance. t = 0 is noise and t = 1 is data.

The path is z_t = t z_1 + (1 - t) ε and its velocity dz/dt = z_1 - ε (Liu et al. 2022, Lipman et
al. 2022).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key, Shaped

from unicom_jax.core.flow_steps import SAMPLERS, EulerStep, FlowStep, SdeStep, VelocityFn
from unicom_jax.core.losses import LossTerm, LossTerms
from unicom_jax.core.parts import part_term

TIME_BINS = 4  # the flow loss is reported for each of these bins
TIME_KINDS = ("uniform", "logit_normal")  # distributions of `sample_time`
TIME_GRIDS = ("even", "released")  # of `time_grid`


def align_time(
    time: float | Float[Array, " ..."], like: Float[Array, " ..."]
) -> Float[Array, " ..."]:
    """Time (B,) or (B, N) with axes of 1 appended, to broadcast over the later axes of `like`."""
    time = jnp.asarray(time)
    return time.reshape(time.shape + (1,) * (like.ndim - time.ndim))


def interpolate(
    data: Float[Array, "*shape"], noise: Float[Array, "*shape"], time: Float[Array, " ..."]
) -> Float[Array, "*shape"]:
    """z_t = t z_1 + (1 - t) ε. `time` has leading axes of `data` (B, ...): (), (B,) or (B, N)."""
    time = align_time(time, data).astype(data.dtype)
    return time * data + (1.0 - time) * noise


def velocity(data: Float[Array, "*shape"], noise: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """v = z_1 - ε, constant along the path."""
    return data - noise


def data_to_velocity(
    data: Float[Array, "*shape"],
    noisy: Float[Array, "*shape"],
    time: Float[Array, " ..."],
    floor: float,
) -> Float[Array, "*shape"]:
    """The velocity that leads from z_t to `data`: (z_1 - z_t) / max(1 - t, floor).

    The floor bounds the loss weight of a data-predicting network near t = 1 ("JiT": Li & He 2025).
    """
    return (data - noisy) / jnp.maximum(1.0 - align_time(time, data), floor)


def floored_velocities(
    prediction: Float[Array, "*shape"],
    data: Float[Array, "*shape"],
    noisy: Float[Array, "*shape"],
    time: Float[Array, " ..."],
    floor: float,
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """The velocities to a predicted z_1 and to the true one, for the loss of "data" prediction.

    Both use the same floor; otherwise the best prediction near t = 1 would not be the data.
    """
    return (
        data_to_velocity(prediction, noisy, time, floor),
        data_to_velocity(data, noisy, time, floor),
    )


def velocity_to_data(
    velocity: Float[Array, "*shape"], noisy: Float[Array, "*shape"], time: Float[Array, " ..."]
) -> Float[Array, "*shape"]:
    """Where the straight line from z_t ends: z_1 = z_t + (1 - t) v."""
    return noisy + (1.0 - align_time(time, noisy)) * velocity


def shift_time(
    time: Float[Array, "*shape"], shift: float | Float[Array, " ..."]
) -> Float[Array, "*shape"]:
    """t' = t / (t + s (1 - t)); s > 1 moves towards noise, 0 and 1 stay (Esser et al. 2024).

    Cheers writes t' = α t / (1 + (α - 1) t): s = 1 / α.
    """
    return time / (time + shift * (1.0 - time))


def latent_shift(tokens: int | Int[Array, "*shape"], dims: int) -> float | Float32[Array, "*shape"]:
    """s = sqrt(N d / 4096) for N tokens of d channels ("RAE": Zheng et al. 2025).

    An array of token counts, one for each picture, gives an array of shifts. An absent picture
    (N = 0) counts as one token, so that its time stays finite.
    """
    if isinstance(tokens, int):
        return math.sqrt(tokens * dims / 4096)
    return jnp.sqrt(jnp.maximum(tokens, 1).astype(jnp.float32) * (dims / 4096))


def sample_time(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    kind: str = "uniform",
    shift: float | Float[Array, " ..."] = 1.0,
    *,
    mean: float = 0.0,
    std: float = 1.0,
) -> Float32[Array, " ..."]:
    """Training times of the given shape, shifted by `shift`: one number, or one for each time.

    "uniform" is U[0, 1); "logit_normal" is sigmoid(mean + std · N(0, 1)): a negative mean favours
    noise. `mean` and `std` belong to "logit_normal".
    """
    if kind == "logit_normal":
        time = jax.nn.sigmoid(mean + std * jax.random.normal(key, shape))
    elif kind != "uniform":
        raise ValueError(f'time distribution {kind!r}: choose "uniform" or "logit_normal"')
    elif (mean, std) != (0.0, 1.0):
        raise ValueError('mean and std mean nothing for uniform time; choose "logit_normal"')
    else:
        time = jax.random.uniform(key, shape)
    return shift_time(time, shift)


def flow_loss(
    prediction: Float[Array, "*B d"],
    target: Float[Array, "*B d"],
    weights: Shaped[Array, "*#B"] | None = None,
) -> LossTerm:
    """Squared error, averaged over channels and summed over tokens with `weights`.

    Tokens of weight 0 cannot make it NaN.
    """
    weights, error = _weighted_errors(prediction, target, weights)
    return jnp.sum(weights * error), jnp.sum(weights)


def flow_terms(
    prediction: Float[Array, "*B d"],
    target: Float[Array, "*B d"],
    weights: Shaped[Array, "*#B"],
    time: Float[Array, "*#B"],
    of: Bool[Array, "*#B P"] | None = None,
) -> LossTerms:
    """The term `flow` of `flow_loss`, and its parts by flow time, which are only reported.

    Part `flow/t0.25` covers tokens with .25 <= t < .5; there are `TIME_BINS` of equal width.
    With `of` (`core.parts.membership`), `flow/parts` has the sums and counts by part of a mixture.
    """
    weights, error = _weighted_errors(prediction, target, weights)
    total = {"flow": (jnp.sum(weights * error), jnp.sum(weights))}
    if of is not None:
        total["flow/parts"] = part_term(error, weights, of)
    return total | terms_by_time("flow", error, weights, time)


def terms_by_time(
    name: str,
    values: Float[Array, "*B"],
    weights: Shaped[Array, "*#B"],
    time: Float[Array, "*#B"],
    bins: int = TIME_BINS,
) -> LossTerms:
    """Means of `values` by flow time: `bins` terms, named as in `flow_terms`."""
    weights = jnp.broadcast_to(weights, values.shape).astype(jnp.float32)
    number = jnp.clip(jnp.floor(time * bins), 0, bins - 1)
    terms = {}
    for index in range(bins):
        own = weights * (number == index)
        terms[f"{name}/t{index / bins:.2f}"] = (jnp.sum(own * values), jnp.sum(own))
    return terms


def _weighted_errors(
    prediction: jax.Array, target: jax.Array, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """fp32 weights and squared errors of tokens (*B); the error is 0 where the weight is 0."""
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    if weights is None:
        weights = jnp.ones(error.shape[:-1])
    weights = jnp.broadcast_to(weights.astype(jnp.float32), error.shape[:-1])
    error = jnp.where(weights[..., None] > 0, error, 0.0)
    return weights, jnp.mean(jnp.square(error), axis=-1)


def time_grid(
    steps: int,
    shift: float | Float[Array, ""] = 1.0,
    *,
    start: float = 0.0,
    kind: str = "even",
) -> Float[Array, " nodes"]:
    """The increasing times of an integration, shifted by `shift`.

    Args:
      steps: number of steps from `start` ("even") or from 0 ("released": fewer from `start`).
      start: time at which the integration begins, before the shift; see `begin_from`.
      kind: one of `TIME_GRIDS`. "even" takes equal steps from `start` to 1. "released" is the grid
        of Cheers' published code, for comparisons with it: N = (1 - start) · steps nodes from
        `start` to 1 and one more step of 1 / N beyond 1, so v is evaluated at t = 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; an integration needs at least 1")
    if not 0.0 <= start < 1.0:
        raise ValueError(f"start is {start}; an integration starts at 0 or later, and before 1")
    if kind == "even":
        return shift_time(jnp.linspace(start, 1.0, steps + 1), shift)
    if kind != "released":
        raise ValueError(f"time grid {kind!r} is unknown; choose one of {TIME_GRIDS}")
    nodes = math.floor(round((1.0 - start) * steps, 6))  # .9 · 80 is a little less than 72
    if nodes < 2:
        raise ValueError(f"steps is {steps}; the released grid needs 2 nodes behind start={start}")
    times = shift_time(jnp.linspace(start, 1.0, nodes), shift)
    return jnp.append(times, 1.0 + 1.0 / nodes)


class Trajectory(NamedTuple):
    """The course of an integration.

    Attributes:
      states: z at each time of the grid, noise and result included.
      times: the grid.
      log_probs: log-probability of each step from its state to the next, one per row (see
        `SdeStep`); None for steps of an ODE, whose next state has no density.
    """

    states: Float[Array, "times ..."]
    times: Float[Array, " times"]
    log_probs: Float32[Array, "steps B"] | None


def integrate(
    velocity_fn: VelocityFn,
    noise: Float[Array, "*shape"],
    steps: int,
    sampler: str | FlowStep = "euler",
    shift: float | Float[Array, ""] = 1.0,
    *,
    start: float = 0.0,
    grid: str = "even",
    key: Key[Array, "*#B"] | None = None,
    trajectory: bool = False,
) -> Float[Array, "*shape"] | tuple[Float[Array, "*shape"], Trajectory]:
    """Carries `noise` from t = 0 to t = 1 along dz/dt = velocity_fn(z, t), in fp32 or better.

    With a later `start`, `noise` is a state of that time; see `begin_from`.

    `velocity_fn` gets the state and a scalar time. One `scan` runs all steps, so the compiled code
    holds `velocity_fn` once (Heun: twice) however many steps there are.

    Args:
      sampler: a name of `SAMPLERS`, or a step (z, t0, t1, key) -> (z, log-probability).
      start, grid: see `time_grid`.
      key: for steps that draw noise: one key, or one per row.
      trajectory: also return the states, times and log-probabilities on the way.
    """
    if isinstance(sampler, str) and sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r} is unknown; choose one of {sorted(SAMPLERS)}")
    step = SAMPLERS[sampler] if isinstance(sampler, str) else sampler
    if step.stochastic and key is None:
        raise ValueError(f"{type(step).__name__} draws noise; give integrate a key")
    if step.stochastic and grid == "released":
        raise ValueError("grid='released' steps beyond t = 1, where an SDE step has no density")

    def field(z: jax.Array, time: jax.Array) -> jax.Array:
        return velocity_fn(z, time).astype(z.dtype)

    def body(z: jax.Array, interval: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        number, t0, t1 = interval
        step_key = _fold(key, number) if step.stochastic else None
        after, log_prob = step(field, z, t0, t1, step_key)
        return after, (after, log_prob) if trajectory else None

    first = noise.astype(jnp.promote_types(noise.dtype, jnp.float32))
    times = time_grid(steps, shift, start=start, kind=grid).astype(first.dtype)
    numbers = jnp.arange(len(times) - 1)
    final, passed = jax.lax.scan(body, first, (numbers, times[:-1], times[1:]))
    if not trajectory:
        return final
    states, log_probs = passed
    return final, Trajectory(jnp.concatenate([first[None], states]), times, log_probs)


def integrate_window(
    velocity_fn: VelocityFn,
    noise: Float[Array, "*shape"],
    steps: int,
    sde: SdeStep,
    first: int | Int[Array, ""],
    length: int,
    shift: float | Float[Array, ""] = 1.0,
    *,
    key: Key[Array, "*#B"],
) -> tuple[Float[Array, "*shape"], Trajectory]:
    """Like `integrate`, with SDE steps in the window [first, first + length) and Euler's elsewhere.

    The start of the window is an argument of the compiled program, so the window may move.

    Returns:
      The result, and the trajectory of the window alone.

    Raises:
      ValueError: a window that is longer than the integration.
    """
    if not 0 < length <= steps:
        raise ValueError(f"a window of {length} steps does not fit into {steps}")

    def field(z: jax.Array, time: jax.Array) -> jax.Array:
        return velocity_fn(z, time).astype(z.dtype)

    state = noise.astype(jnp.promote_types(noise.dtype, jnp.float32))
    times = time_grid(steps, shift).astype(state.dtype)
    first = jnp.clip(jnp.asarray(first, jnp.int32), 0, steps - length)

    def drift(number: jax.Array, z: jax.Array) -> jax.Array:
        return EulerStep()(field, z, times[number], times[number + 1])[0]

    def jump(z: jax.Array, number: jax.Array) -> tuple[jax.Array, Any]:
        after, log_prob = sde(field, z, times[number], times[number + 1], _fold(key, number))
        return after, (after, log_prob)

    before = jax.lax.fori_loop(0, first, drift, state)
    after, (states, log_probs) = jax.lax.scan(jump, before, first + jnp.arange(length))
    final = jax.lax.fori_loop(first + length, steps, drift, after)
    passed = jax.lax.dynamic_slice_in_dim(times, first, length + 1)
    return final, Trajectory(jnp.concatenate([before[None], states]), passed, log_probs)


def begin_from(
    data: Float[Array, "*shape"],
    noise: Float[Array, "*shape"],
    start: float,
    shift: float | Float[Array, ""] = 1.0,
    *,
    grid: str = "even",
) -> Float[Array, "*shape"]:
    """The state from which `integrate` begins at `start`, so that an edit keeps some of its source.

    Data and noise are mixed at the shifted time, which is what the model is given. With `grid`
    "released" they are mixed at `start` itself, as in Cheers' published code, whatever time the
    model is given.
    """
    time = jnp.asarray(start)
    return interpolate(data, noise, time if grid == "released" else shift_time(time, shift))


def _fold(key: jax.Array, number: jax.Array) -> jax.Array:
    fold = jax.random.fold_in
    return fold(key, number) if key.ndim == 0 else jax.vmap(fold, (0, None))(key, number)


def guide(
    conditional: Float[Array, "*shape"],
    unconditional: Float[Array, "*shape"],
    scale: float | Float[Array, " ..."],
    time: Float[Array, " ..."],
    interval: tuple[float, float] = (0.0, 1.0),
) -> Float[Array, "*shape"]:
    """Classifier-free guidance u + scale (c - u) (Ho & Salimans 2022) for times in `interval`.

    Outside the closed interval the result is the conditional velocity (Kynkäänniemi et al. 2024).
    `scale` and `time` are scalars or have leading axes of `conditional` (B, ...).
    """
    low, high = interval
    time = align_time(time, conditional)
    scale = jnp.where((time >= low) & (time <= high), align_time(scale, conditional), 1.0)
    # c + (scale - 1)(c - u) rather than u + scale (c - u): a scale of 1 gives c to the last bit.
    scale = scale.astype(conditional.dtype)
    return conditional + (scale - 1) * (conditional - unconditional)
