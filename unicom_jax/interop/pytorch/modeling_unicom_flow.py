"""Rectified flow: z_t = t z_1 + (1 - t) noise. t = 0 is noise and t = 1 is data."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

VelocityField = Callable[[Tensor, Tensor], Tensor]  # (z, scalar time) -> dz/dt
SAMPLERS = ("euler", "heun")


def data_to_velocity(data: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
    """The velocity that leads from z_t to `data`: (z_1 - z_t) / (1 - t), time (B,) or (B, N)."""
    left = (1.0 - time).clamp(min=1e-6).reshape(*time.shape, *[1] * (data.ndim - time.ndim))
    return (data - noisy) / left


def time_grid(steps: int, shift: float = 1.0) -> Tensor:
    """steps + 1 times from 0 to 1, t' = t / (t + shift (1 - t)): above 1 more of them near noise.

    They stay on the CPU: the loop over them is Python's.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; an integration needs at least 1")
    time = torch.linspace(0.0, 1.0, steps + 1, device="cpu")
    return time / (time + shift * (1.0 - time))


def latent_shift(tokens: int, dims: int) -> float:
    """sqrt(N d / 4096) for N tokens of d channels ("RAE": Zheng et al. 2025)."""
    return math.sqrt(tokens * dims / 4096)


def integrate(
    velocity: VelocityField,
    noise: Tensor,
    steps: int,
    sampler: str = "euler",
    shift: float = 1.0,
) -> Tensor:
    """Carries `noise` from t = 0 to t = 1, in fp32.

    "heun" corrects each Euler step by the velocity at its end (Karras et al. 2022), save for the
    last one: a network that predicts data knows no velocity at t = 1.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    z, times = noise.float(), time_grid(steps, shift)
    for start, stop in zip(times[:-1], times[1:], strict=True):
        first = velocity(z, start).to(z)
        after = z + (stop - start) * first
        if sampler == "heun" and stop < 1.0:
            after = z + 0.5 * (stop - start) * (first + velocity(after, stop).to(z))
        z = after
    return z


def guide(
    conditional: Tensor,
    unconditional: Tensor,
    scale: float,
    time: Tensor,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): 1 leaves the conditional velocity.

    So do times outside the closed `interval` (Kynkäänniemi et al. 2024).
    """
    if not interval[0] <= time <= interval[1]:
        return conditional
    return conditional + (scale - 1) * (conditional - unconditional)
