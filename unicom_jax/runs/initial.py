"""The weights that a stage starts from: released ones where `init_from` names them, else random.

Weights that no folder gives are initialised as without `init_from` (`core.module`: a weight depends
only on the seed and its own path). If our vocabulary is longer than the folder's, the additional
rows start as the mean of all rows of the folder, which neither attracts nor repels predictions
(Hewitt 2021, "Initializing new word embeddings"). If the folder's is longer, it is refused;
`data.padded_vocab_size` makes ours large enough.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from unicom_jax.config import ConfigError
from unicom_jax.core.module import Params, ParamSpec, Specs, complete_params, iter_specs
from unicom_jax.interop.folders import read_model
from unicom_jax.runs.released import Source

# Axis of the vocabulary in the weights that have one.
VOCABULARY = {("embedding", "table"): 0, ("head", "kernel"): 1}


def initial_params(
    specs: Specs,
    sources: list[Source],
    seed: int,
    shard: Callable[[Specs], Params],
    arrived: Callable[[int], None] = lambda nbytes: None,
    given: Params | None = None,
    fresh: Collection[tuple[str, ...]] = (),
) -> Params:
    """All weights of `specs`: from `sources`, the rest random, each created in its shards.

    Args:
      given: weights that exist already, as a part of the tree; they take precedence over `sources`.
      fresh: paths below the top-level keys of `given` that are random although the rest is given.
      shard: gives the shardings for a tree of specs.
      arrived: see `transfer.load_weights`.

    Raises:
      WeightsError: a folder is damaged or does not hold what its config.json says.
    """
    for source in sources:
        source.check()
    flat, weights = dict(iter_specs(specs)), {}
    for source in sources:
        read = read_model(
            source.folder,
            source.layout,
            source.module,
            shardings=shard(source.module.specs()),
            arrived=arrived,
        )
        for path, weight in traverse_util.flatten_dict(read).items():
            if source.new_rows and (held := path[-2:]) in VOCABULARY:
                whole = {path: flat[source.path + path]}
                place = traverse_util.flatten_dict(shard(traverse_util.unflatten_dict(whole)))
                weight = grow(weight, source.vocab_size, VOCABULARY[held], place[path])
            weights[source.path + path] = weight
        for path, value in source.constants.items():
            place = shard(traverse_util.unflatten_dict({path: flat[path]}))
            filled = np.full(flat[path].shape, value, flat[path].dtype)
            weights[path] = jax.device_put(filled, traverse_util.flatten_dict(place)[path])
    weights |= _fitting(given or {}, flat, fresh)
    whole = traverse_util.unflatten_dict(weights)
    return complete_params(specs, whole, jax.random.key(seed), shard)


def _fitting(
    given: Params,
    specs: Mapping[tuple[str, ...], ParamSpec],
    fresh: Collection[tuple[str, ...]],
) -> dict:
    """`given` by path.

    Raises:
      ConfigError: the stage lacks a weight or has it in another size, or a weight of the stage
        would stay random under a top-level key that is given.
    """
    flat = traverse_util.flatten_dict(given)
    for path in specs:
        expected = any(path[: len(one)] == one for one in fresh)
        if path[0] in given and path not in flat and not expected:
            raise ConfigError(
                f"{path[0]} starts from weights without {'/'.join(path[1:])}, which would stay "
                "random; give both parts the same sizes"
            )
    for path, weight in flat.items():
        ours = specs[path].shape if path in specs else "none"
        if weight.shape != ours:
            raise ConfigError(
                f"{'/'.join(path)} starts from a weight of shape {weight.shape}, the stage has "
                f"{ours}; give both parts the same sizes"
            )
    return flat


def grow(weight: jax.Array, size: int, axis: int, sharding: jax.sharding.Sharding) -> jax.Array:
    """`weight` extended to `size` along `axis`; new entries are the mean of the old ones."""

    def grown(weight: jax.Array) -> jax.Array:
        mean = jnp.mean(weight, axis, dtype=jnp.float32, keepdims=True).astype(weight.dtype)
        shape = list(weight.shape)
        shape[axis] = size - shape[axis]
        return jnp.concatenate([weight, jnp.broadcast_to(mean, shape)], axis)

    return jax.jit(grown, out_shardings=sharding)(weight)
