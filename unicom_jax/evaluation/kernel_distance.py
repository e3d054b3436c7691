"""Unbiased kernel distance (KID) of two sets of pictures, with its interval."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Real

from unicom_jax.evaluation.intervals import Interval, u_statistic_interval

DEGREE = 3


def kernel_distance(first: Real[np.ndarray, "n F"], second: Real[np.ndarray, "n F"]) -> Interval:
    """KID (Bińkowski et al. 2018): squared maximum mean discrepancy of two sets of features.

    The kernel is theirs, (x·y / F + 1)³. Pictures i of the two sets may be related, such as a
    picture and its reconstruction: the estimate averages
    k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i) over i ≠ j (Gretton et al. 2012, lemma 6),
    in which no pair is compared with itself. So its expectation is the true distance at every
    number of pictures, unlike a Fréchet distance's, and it can come out slightly below 0.

    The features are those of the model's own encoder, not of Inception-v3: values are comparable
    only between models that are measured by the same encoder.

    Raises ValueError when the sets differ in shape or have fewer than three pictures.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"feature sets must both be (n, F), got {first.shape} and {second.shape}; pool each "
            "picture to one vector of the same encoder"
        )
    across = _kernel(first, second)
    return u_statistic_interval(_kernel(first, first) + _kernel(second, second) - across - across.T)


def _kernel(
    first: Float[np.ndarray, "n F"], second: Float[np.ndarray, "n F"]
) -> Float[np.ndarray, "n n"]:
    return (first @ second.T / first.shape[1] + 1.0) ** DEGREE
