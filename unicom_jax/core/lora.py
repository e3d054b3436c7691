"""LoRA (Hu et al. 2021, arXiv 2106.09685): a stage trains low-rank changes of chosen matrices.

`Lora(module, ...)` declares the weights of `module` and an adapter next to each kernel that
`targets` names; `core.layers.Linear` applies an adapter wherever its weights contain one:

    {"kernel": (in, out), "lora": {"a": (in, rank), "b": (rank, out), "scale": alpha / rank}}

    y = x kernel + scale · (x a) b

`b` starts at 0, so the model starts unchanged. The product is not merged into the kernel during
training: merging would need the gradient of the whole kernel, as large and as costly as without
LoRA. The two thin products cost 2 · rank · (in + out) operations per token, instead of
2 · in · out for that gradient alone. `merge` merges them once, for inference.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from unicom_jax.core.layers import ADAPTER
from unicom_jax.core.module import (
    Module,
    Params,
    ParamSpec,
    Specs,
    fan_in,
    iter_specs,
    stack_specs,
    zeros,
)

Path = tuple[str, ...]
# Matches, from the beginning, the paths of all weights except the trained ones of adapters.
BASE = rf"(?!.*/{ADAPTER}/[ab]$)"


@dataclasses.dataclass(frozen=True)
class Lora(Module):
    """The weights of `base` and adapters for some of its linear layers.

    Attributes:
      base: the module that computes, with adapters too; only its `specs` matter here.
      rank: rank of each matrix's change.
      alpha: the change is scaled by alpha / rank.
      targets: regular expressions that match whole paths of linear layers, e.g.
        "transformer/blocks/attention/(query|value)".
    """

    base: Module
    rank: int
    alpha: float
    targets: Sequence[str]

    def specs(self) -> Specs:
        """Raises ValueError for a target that matches no linear layer."""
        flat = dict(iter_specs(self.base.specs()))
        layers = {path[:-1]: spec for path, spec in flat.items() if _is_linear(path, spec)}
        added = {}
        for target in self.targets:
            own = [path for path in layers if re.fullmatch(target, "/".join(path))]
            if not own:
                known = ", ".join(sorted({"/".join(path) for path in layers})[:12])
                raise ValueError(f"{target!r} matches no linear layer; there are {known}")
            added |= {(*path, ADAPTER): self._adapter(layers[path]) for path in own}
        return _with_nodes(self.base.specs(), added)

    def _adapter(self, kernel: ParamSpec) -> Specs:
        size, axes = kernel.shape[-2:], kernel.axes[-2:]
        adapter = {
            "a": ParamSpec((size[0], self.rank), (axes[0], None), fan_in()),
            "b": ParamSpec((self.rank, size[1]), (None, axes[1]), zeros),
            "scale": ParamSpec((), (), jax.nn.initializers.constant(self.alpha / self.rank)),
        }
        return stack_specs(adapter, kernel.shape[0]) if len(kernel.shape) == 3 else adapter


def _is_linear(path: Path, spec: ParamSpec) -> bool:
    """Whether a weight is the kernel of a `Linear` or of a stack of them. The vocabulary head does
    not count: its product is computed without the layer."""
    stacked = spec.axes[:1] == ("layers",)
    return path[-1] == "kernel" and len(spec.shape) == 2 + stacked and "vocab" not in spec.axes


def _with_nodes(tree: Mapping[str, Any], nodes: Mapping[Path, Any], here: Path = ()) -> Any:
    """`tree` with `nodes` added at their paths; existing entries keep their order."""
    out = {
        name: _with_nodes(child, nodes, (*here, name)) if isinstance(child, Mapping) else child
        for name, child in tree.items()
    }
    return out | ({ADAPTER: nodes[(*here, ADAPTER)]} if (*here, ADAPTER) in nodes else {})


def adapters(params: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """The adapters in a tree of weights, by the path of their layer."""
    found: dict[Path, dict[str, Any]] = {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        if path[-2:-1] == (ADAPTER,):
            found.setdefault(path[:-2], {})[path[-1]] = leaf
    return found


def base_weights(params: Params) -> Params:
    """The weights without adapters."""
    flat = traverse_util.flatten_dict(params, keep_empty_nodes=True)
    return traverse_util.unflatten_dict({p: x for p, x in flat.items() if ADAPTER not in p})


def merge(params: Params) -> Params:
    """Weights for inference: kernel + scale · a b, computed in fp32, where a layer has an adapter.

    NumPy arrays give NumPy arrays; a merged JAX kernel has the sharding of the original. The dtype
    is the kernel's.
    """
    flat = traverse_util.flatten_dict(base_weights(params), keep_empty_nodes=True)
    for path, adapter in adapters(params).items():
        kernel = flat[(*path, "kernel")]
        on_host = isinstance(kernel, np.ndarray)
        merged = _merged_on_host if on_host else _merged(kernel.sharding)
        flat[(*path, "kernel")] = merged(kernel, adapter)
    return traverse_util.unflatten_dict(flat)


def _merged_on_host(kernel: np.ndarray, adapter: Mapping[str, np.ndarray]) -> np.ndarray:
    scale = np.asarray(adapter["scale"], np.float32)[..., None, None]
    return (kernel + scale * (adapter["a"] @ adapter["b"])).astype(kernel.dtype)


def _merged(place: jax.sharding.Sharding) -> Callable[[jax.Array, Mapping[str, Any]], jax.Array]:
    def merged(kernel: jax.Array, adapter: Mapping[str, Any]) -> jax.Array:
        product = jnp.matmul(adapter["a"], adapter["b"], precision=jax.lax.Precision.HIGHEST)
        return (kernel + adapter["scale"][..., None, None] * product).astype(kernel.dtype)

    return jax.jit(merged, out_shardings=place)
