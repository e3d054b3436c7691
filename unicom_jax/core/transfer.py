"""How the weights of a model grow from those of a smaller one, and what that does to their start.

Learning rate, weight decay and initial sizes that were tuned on a small model fit a wider or deeper
one if each weight's share is rescaled (muP: Yang et al. 2022, arXiv 2203.03466; CompleteP: Dey et
al. 2025, arXiv 2505.01618; Complete(d)P, arXiv 2512.22382). With m_in and m_out, the ratios of a
weight's input and output dimension to those in the tuned model, and m_L, the ratio of the depths:

    kernel, m_in = 1        variance as it was                      read from words, latents, time
    kernel, m_in, m_out     variance / m_in                         inside the model
    kernel, m_out = 1       variance / m_in²                        logits, velocities
    end of a residual branch: all of it / m_L                       x + f(x) / m_L

Initialisers of variance 1 / fan_in give the second row by themselves. The factors of a branch and
of the logits are not applied to activations. They are part of the weights, which is the same
function and needs no other forward pass: `training/transfer.py` scales the updates to match.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax

from unicom_jax.core.module import Initializer, ParamSpec, Specs, fill_specs, iter_specs

Path = tuple[str, ...]
# The last layers of residual branches, in stacks of blocks: of attention and of its MLP.
BRANCH_END = re.compile(r".*/(attention/out|output|mlp/down)/(kernel|bias)")


@dataclasses.dataclass(frozen=True)
class Growth:
    """The ratio of a weight's sizes to those of the same weight in the tuned model.

    Attributes:
      matrix: whether it maps inputs to outputs; else it is a bias, a scale or a norm's gain.
      inputs: m_in, of the dimensions that are summed over; 1 if `matrix` is false.
      outputs: m_out, of the last dimension.
      depth: m_L for a weight of a stack of blocks; else 1.
      ends_branch: whether its layer's output is added to the residual stream of a stack.
    """

    matrix: bool
    inputs: float
    outputs: float
    depth: float
    ends_branch: bool

    @property
    def branch(self) -> float:
        """The factor 1 / m_L of a residual branch, for the weights at its end; else 1."""
        return 1 / self.depth if self.ends_branch else 1.0

    @property
    def initial(self) -> float:
        """Factor of the initial values, next to that of an initialiser of variance 1 / fan_in."""
        reads_out = self.matrix and self.outputs == 1
        return self.branch / (math.sqrt(self.inputs) if reads_out else 1.0)


def growth(specs: Specs, tuned: Specs) -> dict[Path, Growth]:
    """The growth of each weight of `specs`.

    Args:
      tuned: specs of the model whose settings were tuned; it has the same weights in other sizes.

    Raises:
      ValueError: a weight that only one of them has, or that has other dimensions.
    """
    ours, base = dict(iter_specs(specs)), dict(iter_specs(tuned))
    if odd := sorted("/".join(path) for path in ours.keys() ^ base.keys()):
        raise ValueError(f"only one of the two models has {', '.join(odd[:3])}")
    return {path: _growth("/".join(path), spec, base[path]) for path, spec in ours.items()}


def _growth(name: str, spec: ParamSpec, base: ParamSpec) -> Growth:
    if spec.axes != base.axes:
        raise ValueError(f"{name} has axes {spec.axes} in one model and {base.axes} in the other")
    stacked = spec.axes[:1] == ("layers",)
    ratios = [now / before for now, before in zip(spec.shape, base.shape, strict=True)]
    depth, sides = (ratios[0], ratios[1:]) if stacked else (1.0, ratios)
    return Growth(
        matrix=len(sides) > 1,
        inputs=math.prod(sides[:-1]),
        outputs=sides[-1] if sides else 1.0,
        depth=depth,
        ends_branch=stacked and BRANCH_END.fullmatch(name) is not None,
    )


def rescaled(specs: Specs, grown: Mapping[Path, Growth]) -> Specs:
    """`specs` with initial values times `Growth.initial`."""

    def scale(spec: ParamSpec, factor: float) -> ParamSpec:
        return spec if factor == 1 else dataclasses.replace(spec, init=_times(spec.init, factor))

    leaves = {path: scale(spec, grown[path].initial) for path, spec in iter_specs(specs)}
    return fill_specs(specs, leaves)


def _times(init: Initializer, factor: float) -> Initializer:
    def scaled(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return factor * init(key, shape, dtype)

    return scaled
