"""One integration step of a flow, from z at t0 to z at t1, and its log-probability if any."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

# (z, time) -> dz/dt
VelocityFn = Callable[[Float[Array, "*shape"], Float[Array, ""]], Float[Array, "*shape"]]


class OdeStep:
    """Base of the ODE steps: they need no key and have no log-probability (None)."""

    stochastic = False

    def log_prob(self, *step: Any) -> None:
        """Raises ValueError: the end of such a step is certain, so it has no density."""
        raise ValueError(
            f"{type(self).__name__} is a step of an ODE and has no log-probability; draw with "
            "SdeStep where one is wanted"
        )


@dataclasses.dataclass(frozen=True)
class EulerStep(OdeStep):
    """z + (t1 - t0) v."""

    def __call__(
        self, velocity_fn: VelocityFn, z: jax.Array, t0: jax.Array, t1: jax.Array, key: None = None
    ) -> tuple[jax.Array, None]:
        return z + (t1 - t0) * velocity_fn(z, t0), None


@dataclasses.dataclass(frozen=True)
class HeunStep(OdeStep):
    """Trapezoidal corrector after an Euler predictor; the step that ends at t = 1 stays Euler.

    A data-predicting network gives no velocity at t = 1 (0 / 0). A single Euler step, of local
    error O(h²), keeps the method at second order (Karras et al. 2022, algorithm 1).
    """

    def __call__(
        self, velocity_fn: VelocityFn, z: jax.Array, t0: jax.Array, t1: jax.Array, key: None = None
    ) -> tuple[jax.Array, None]:
        first = velocity_fn(z, t0)
        predicted = z + (t1 - t0) * first

        def correct(_: None) -> jax.Array:
            return z + 0.5 * (t1 - t0) * (first + velocity_fn(predicted, t1))

        return jax.lax.cond(t1 < 1.0, correct, lambda _: predicted, None), None


@dataclasses.dataclass(frozen=True)
class SdeStep:
    """A step of the SDE with the marginals of the flow, so that the next state has a density.

        mean = z + [v - s² / (2 (1 - t)) (z - t v)] (t1 - t0)      s = level sqrt((1 - t) / t)

    -(z - t v) / (1 - t) is the score, so the drift corrects for the noise s sqrt(t1 - t0) that the
    step adds ("Flow-GRPO": Liu et al. 2025, here with t = 1 as data). At t = 0, s uses t1 for t.
    The marginals match those of the ODE only in the limit of many steps. A level of 0 would be
    Euler's step, which has no density, and is refused.
    """

    level: float = 0.7

    stochastic = True

    def __post_init__(self) -> None:
        if not self.level > 0:
            raise ValueError(
                f"an SDE step of noise level {self.level} is a step of the ODE and has no "
                "log-probability; give a level above 0, or integrate with euler"
            )

    def moments(
        self, velocity_fn: VelocityFn, z: jax.Array, t0: jax.Array, t1: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mean (like z) and deviation (a scalar) of the next state."""
        speed, left = velocity_fn(z, t0), 1.0 - t0
        spread = self.level * jnp.sqrt(left / jnp.where(t0 > 0, t0, t1))
        drift = speed - jnp.square(spread) / (2.0 * left) * (z - t0 * speed)
        return z + drift * (t1 - t0), spread * jnp.sqrt(t1 - t0)

    def __call__(
        self, velocity_fn: VelocityFn, z: jax.Array, t0: jax.Array, t1: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        mean, deviation = self.moments(velocity_fn, z, t0, t1)
        after = mean + deviation * _normal(key, z.shape, z.dtype)
        return after, log_density(jax.lax.stop_gradient(after), mean, deviation)

    def log_prob(
        self, velocity_fn: VelocityFn, z: jax.Array, after: jax.Array, t0: jax.Array, t1: jax.Array
    ) -> Float32[Array, " B"]:
        """Log-probability of a step taken from `z` to `after`, under this velocity."""
        return log_density(after, *self.moments(velocity_fn, z, t0, t1))


def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Unit Gaussian, from one key, or from one key per row, so that no row depends on others."""
    if key.ndim == 0:
        return jax.random.normal(key, shape, dtype)
    return jax.vmap(lambda row: jax.random.normal(row, shape[1:], dtype))(key)


def log_density(value: jax.Array, mean: jax.Array, deviation: jax.Array) -> jax.Array:
    """Log-density of an isotropic Gaussian, averaged over the dimensions of a row: (B,).

    An average, as in Flow-GRPO: a sum over a picture's numbers would leave the clip range of any
    policy gradient within one step.
    """
    logs = -0.5 * (jnp.square((value - mean) / deviation) + jnp.log(2.0 * jnp.pi))
    logs = (logs - jnp.log(deviation)).astype(jnp.float32)
    return jnp.mean(logs, axis=tuple(range(1, logs.ndim)))


FlowStep = EulerStep | HeunStep | SdeStep
SAMPLERS: dict[str, FlowStep] = {"euler": EulerStep(), "heun": HeunStep()}
