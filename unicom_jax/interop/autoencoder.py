"""Weights of the KL autoencoder from diffusers, FLUX's among them."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from unicom_jax.core.module import Params, ParamSpec, Specs
from unicom_jax.models.autoencoder import AutoencoderKL


def from_diffusers(module: AutoencoderKL, state: Mapping[str, np.ndarray]) -> Params:
    """Weights for `module` from the state dict of a diffusers `AutoencoderKL`, as NumPy arrays.

    Convolutions turn from (out, in, h, w) to (h, w, in, out), projections from (out, in) to
    (in, out).
    """
    unused = set(state)

    def fill(node: Specs, prefix: str) -> Params:
        return {
            name: leaf(child, prefix + name)
            if isinstance(child, ParamSpec)
            else fill(child, f"{prefix}{name}.")
            for name, child in node.items()
        }

    def leaf(spec: ParamSpec, path: str) -> jax.Array:
        stem, _, kind = path.rpartition(".")
        name = f"{stem}.{'bias' if kind == 'bias' else 'weight'}"
        if name not in state:
            raise ValueError(
                f"autoencoder weights lack {name!r}; do widths and resnets fit the file?"
            )
        unused.discard(name)
        array = np.asarray(state[name])
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
        array = array.transpose(axes)
        if array.shape != spec.shape:
            raise ValueError(f"{name!r} has shape {array.shape}, not {spec.shape}; fix the config")
        return jnp.asarray(array, spec.dtype)

    params = fill(module.specs(), "")
    if unused:
        raise ValueError(f"the autoencoder has no place for {sorted(unused)[0]!r}; fix the config")
    return params
