"""Modules as declarations: one tree of `ParamSpec` describes all of a layer's weights.

A module is a frozen dataclass of sizes. `specs()` returns a nested dict of `ParamSpec`;
`__call__(params, ...)` is a pure function of the matching dict of arrays. The same declaration
drives initialisation, shardings, abstract trees for restore and ahead-of-time compilation,
parameter counts and the mapping to PyTorch names.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Key

Params = Mapping[str, Any]  # nested dict with arrays as leaves
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]

zeros: Initializer = jax.nn.initializers.zeros
ones: Initializer = jax.nn.initializers.ones


def normal(stddev: float = 0.02) -> Initializer:
    """Gaussian of the given standard deviation."""
    return jax.nn.initializers.normal(stddev)


def fan_in(scale: float = 1.0) -> Initializer:
    """Truncated Gaussian of variance `scale / fan_in`; the last axis is the output."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        stddev = (
            math.sqrt(scale / math.prod(shape[:-1])) / 0.87962566
        )  # makes up for the variance lost to truncation
        return stddev * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)

    return init


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One weight: its shape, a logical axis name (or None) per dimension, and its initialiser."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer = dataclasses.field(default_factory=fan_in, repr=False)
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(
                f"shape {self.shape} has {len(self.shape)} dimensions but axes {self.axes} names "
                f"{len(self.axes)}; give one logical axis (or None) per dimension"
            )

    @property
    def size(self) -> int:
        return math.prod(self.shape)


Specs = Mapping[str, Any]  # nested dict with ParamSpec leaves


class Module:
    """Base of all layers and models: frozen dataclasses with `specs` and `__call__`."""

    def specs(self) -> Specs:
        raise NotImplementedError(f"{type(self).__name__} declares no weights")

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial weights. A weight's value depends only on the key and on its own path."""
        return init_params(self.specs(), key)

    def abstract(self) -> Params:
        """The tree of `jax.ShapeDtypeStruct` that `init` would fill."""
        return map_specs(lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype), self.specs())

    def param_count(self) -> int:
        return sum(spec.size for _, spec in iter_specs(self.specs()))


def iter_specs(
    specs: Specs, prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], ParamSpec]]:
    """Yields (path, spec) for every weight, in declaration order."""
    for name, node in specs.items():
        if isinstance(node, ParamSpec):
            yield (*prefix, name), node
        else:
            yield from iter_specs(node, (*prefix, name))


def map_specs(function: Callable[[ParamSpec], Any], specs: Specs) -> Any:
    """Applies `function` to every spec and keeps the tree's structure."""
    return {
        name: function(node) if isinstance(node, ParamSpec) else map_specs(function, node)
        for name, node in specs.items()
    }


def fill_specs(specs: Specs, leaves: Mapping[tuple[str, ...], Any]) -> Any:
    """The tree of `specs` with a leaf for every spec, by its path; nodes without weights stay."""

    def fill(node: Specs, path: tuple[str, ...]) -> Any:
        return {
            name: leaves[(*path, name)]
            if isinstance(child, ParamSpec)
            else fill(child, (*path, name))
            for name, child in node.items()
        }

    return fill(specs, ())


def init_params(specs: Specs, key: Key[Array, ""]) -> Params:
    def build(node: Specs, path: str) -> Params:
        out = {}
        for name, child in node.items():
            here = f"{path}/{name}"
            if isinstance(child, ParamSpec):
                # crc32 rather than hash(): the latter is salted per process.
                weight_key = jax.random.fold_in(key, zlib.crc32(here.encode()))
                out[name] = child.init(weight_key, child.shape, child.dtype)
            else:
                out[name] = build(child, here)
        return out

    return build(specs, "")


def jit_once(function: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
    """`jax.jit` for a program that runs once, such as one that makes initial weights.

    XLA:CPU compiles a random draw for each weight. With less optimisation of machine code this
    takes a third of the time. The weights may differ in their last bit from those of `jax.jit`.
    """
    plain = jax.jit(function, **arguments)
    if jax.default_backend() != "cpu":
        return plain
    options = {"xla_backend_optimization_level": 1}
    quick = jax.jit(function, compiler_options=options, **arguments)

    def run(*given: Any) -> Any:
        # JAX refuses options for a part of another program, as in `jax.eval_shape`.
        part = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given))
        return (plain if part else quick)(*given)

    return run


def complete_params(
    specs: Specs, params: Params, key: Key[Array, ""], shard: Callable[[Specs], Any]
) -> Params:
    """All weights of `specs`: those in `params`, and initial ones for the rest.

    Args:
      shard: gives the shardings for a tree of specs; initial weights are created in place.
    """
    flat, given = dict(iter_specs(specs)), traverse_util.flatten_dict(params)
    if rest := traverse_util.unflatten_dict({p: s for p, s in flat.items() if p not in given}):
        fresh = jit_once(lambda key: init_params(rest, key), out_shardings=shard(rest))(key)
        given |= traverse_util.flatten_dict(fresh)
    return fill_specs(specs, given)


def stack_specs(specs: Specs, layers: int) -> Specs:
    """The specs of `layers` equal blocks with a leading `layers` axis, for `jax.lax.scan`."""

    def stack(spec: ParamSpec) -> ParamSpec:
        def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jax.vmap(lambda k: spec.init(k, shape[1:], dtype))(
                jax.random.split(key, shape[0])
            )

        return ParamSpec((layers, *spec.shape), ("layers", *spec.axes), init, spec.dtype)

    return map_specs(stack, specs)
