"""Guidance by words and by pictures: combines the velocities of several branches.

BAGEL's two scales (Deng et al., arXiv 2505.14683), with the velocity c under the whole prompt, w
without its words and p without its pictures:

    by words     x = w + guidance (c - w)
    by pictures  v = p + image_guidance (x - p)

With only one of them, v is plain classifier-free guidance (Ho & Salimans 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from unicom_jax.core.flow import guide

CONDITIONAL, WORDLESS, PICTURELESS = "conditional", "wordless", "pictureless"  # branches

# What is scaled down to the norm of c if it is larger: nothing; the whole picture's v; each token's
# v; each token's x, before the guidance by pictures.
RENORMALISATIONS = ("none", "picture", "token", "words")
ALWAYS = np.zeros(())  # a time inside the full interval: `drawing` selects the steps


class Scales(NamedTuple):
    """See `drawing.Drawing`."""

    guidance: float
    image_guidance: float
    renorm_min: float


def combine(
    branches: Mapping[str, Float[Array, "R n d"]],
    scales: Scales,
    renorm: str,
    valid: Bool[Array, "R n"],
) -> Float[Array, "R n d"]:
    """The guided velocity.

    Args:
      branches: velocities by branch name; the conditional one and at least one more.
      valid: which tokens belong to the picture.
    """
    conditional = branches[CONDITIONAL]
    guided = conditional
    if WORDLESS in branches:
        guided = guide(conditional, branches[WORDLESS], scales.guidance, ALWAYS)
    if renorm == "words":
        guided = _shrink(guided, conditional, scales.renorm_min, valid, axes=(-1,))
    if PICTURELESS in branches:
        guided = guide(guided, branches[PICTURELESS], scales.image_guidance, ALWAYS)
    if renorm in ("picture", "token"):
        axes = (-2, -1) if renorm == "picture" else (-1,)
        guided = _shrink(guided, conditional, scales.renorm_min, valid, axes)
    return guided


def _shrink(
    x: jax.Array, model: jax.Array, least: jax.Array, valid: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """x, scaled down to the norm of `model` over `axes`, by a factor of at least `least`."""

    def norm(y: jax.Array) -> jax.Array:
        return jnp.linalg.norm(jnp.where(valid[..., None], y, 0), axis=axes, keepdims=True)

    return x * jnp.clip(norm(model) / (norm(x) + 1e-8), least, 1.0)
