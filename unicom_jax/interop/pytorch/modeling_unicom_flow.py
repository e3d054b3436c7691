"""Rectified flow: z_t = t z_1 + (1 - t) noise. t = 0 is noise and t = 1 is data."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

VelocityField = Callable[[Tensor, Tensor], Tensor]  # (z, scalar time) -> dz/dt
SAMPLERS, GRIDS = ("euler", "heun"), ("even", "released")


def data_to_velocity(data: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
    """The velocity that leads from z_t to `data`: (z_1 - z_t) / (1 - t), time (B,) or (B, N)."""
    left = (1.0 - time).clamp(min=1e-6).reshape(*time.shape, *[1] * (data.ndim - time.ndim))
    return (data - noisy) / left


def shift_time(time: Tensor, shift: float) -> Tensor:
    """t' = t / (t + shift (1 - t)): above 1 nearer to noise."""
    return time / (time + shift * (1.0 - time))


def time_grid(steps: int, shift: float = 1.0, *, start: float = 0.0, grid: str = "even") -> Tensor:
    """The times of an integration from `start` to 1, shifted.

    They stay on the CPU: the loop over them is Python's.

    Args:
      grid: "even": so many equal steps. "released": as in Cheers' published code, N = (1 - start) ·
        steps times up to 1 and one more step of 1 / N, which needs the velocity at 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; an integration needs at least 1")
    if not 0.0 <= start < 1.0:
        raise ValueError(f"edit_start is {start}; give a flow time from 0 to below 1")
    if grid not in GRIDS:
        raise ValueError(f"grid {grid!r} is unknown; choose one of {', '.join(GRIDS)}")
    if grid == "even":
        return shift_time(torch.linspace(start, 1.0, steps + 1, device="cpu"), shift)
    count = math.floor(round((1.0 - start) * steps, 6))  # .9 · 80 is a little less than 72
    if count < 2:
        raise ValueError(f"steps is {steps}; the released grid needs 2 times from {start:g} on")
    times = shift_time(torch.linspace(start, 1.0, count, device="cpu"), shift)
    return torch.cat([times, torch.tensor([1.0 + 1.0 / count])])


def begin_from(
    data: Tensor, noise: Tensor, start: float, shift: float = 1.0, grid: str = "even"
) -> Tensor:
    """The state at `start` of an edit of `data`, mixed at the shifted time, which the model is
    given; on the grid "released" at `start` itself."""
    time = start if grid == "released" else float(shift_time(torch.tensor(start), shift))
    return time * data + (1.0 - time) * noise


def latent_shift(tokens: int, dims: int) -> float:
    """sqrt(N d / 4096) for N tokens of d channels ("RAE": Zheng et al. 2025)."""
    return math.sqrt(tokens * dims / 4096)


def integrate(
    velocity: VelocityField,
    noise: Tensor,
    steps: int,
    sampler: str = "euler",
    shift: float = 1.0,
    *,
    start: float = 0.0,
    grid: str = "even",
) -> Tensor:
    """Carries `noise`, or a state of `begin_from`, to t = 1 in fp32.

    "heun" corrects each Euler step by the velocity at its end (Karras et al. 2022), save for the
    last one: a network that predicts data knows no velocity at t = 1.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    z, times = noise.float(), time_grid(steps, shift, start=start, grid=grid)
    for now, then in zip(times[:-1], times[1:], strict=True):
        first = velocity(z, now).to(z)
        after = z + (then - now) * first
        if sampler == "heun" and then < 1.0:
            after = z + 0.5 * (then - now) * (first + velocity(after, then).to(z))
        z = after
    return z


def check_guidance(scale: float, interval: tuple[float, float]) -> None:
    """Raises a ValueError if no picture can be guided in this way."""
    if not math.isfinite(scale):
        raise ValueError(f"guidance is {scale}; give a finite number")
    low, high = interval
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(
            f"guidance_interval {tuple(interval)} is not an interval; give two flow times from 0 "
            "(noise) to 1 (picture), the lower one first"
        )


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
