"""Mean and variance of latent channels, measured once at the end of a stage and kept as weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float64

from unicom_jax.core.module import Params
from unicom_jax.parallel.sharding import fetch, place_copies

STATISTICS = "statistics/.*"  # pattern of these weights, which no stage trains


def channel_moments(
    latents: Iterable[tuple[Float[Array, "B n d"], Bool[Array, "B n"]]], remedy: str
) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, " d"]]:
    """Mean and variance of every channel over the real tokens.

    Sums are kept in float64 on the host: a channel's mean may be large relative to its deviation.
    Each of several processes sums over all latents, in the same order.

    Args:
      latents: for each batch, its latents and which of its tokens are not padding.
      remedy: what to do about a channel that never varies, for the error.

    Raises:
      ValueError: there is such a channel, so nothing can be drawn in it.
    """
    count, total, squares = 0.0, 0.0, 0.0
    for batch in latents:
        raw, real = fetch(batch)
        values = raw[real].astype(np.float64)
        count += len(values)
        total = total + values.sum(0)
        squares = squares + np.square(values).sum(0)
    mean = total / count
    variance = np.maximum(squares / count - np.square(mean), 0.0)
    if not np.all(variance > 1e-12):
        dead = np.flatnonzero(variance <= 1e-12).tolist()
        raise ValueError(f"latent channels {dead} are constant; {remedy}")
    return mean, variance


def with_statistics(params: Params, new: Mapping[str, np.ndarray]) -> Params:
    """`params` with new `statistics`, with the shardings of the old ones."""
    place = jax.tree.leaves(params["statistics"])[0].sharding
    new = {name: values.astype(np.float32) for name, values in new.items()}
    return {**params, "statistics": place_copies(new, place)}


def latent_facts(mean: np.ndarray, deviation: np.ndarray) -> dict[str, list[float]]:
    """What `stage.json` says about the statistics."""
    both = {"latent_mean": mean, "latent_std": deviation}
    return {name: [float(x) for x in values] for name, values in both.items()}
