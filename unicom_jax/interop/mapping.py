"""One table per model maps foreign tensors to our trees; both directions use it.

    RULES = (
        Rule("embedding/table", "model.embed_tokens.weight"),
        Rule("blocks/mlp/up/kernel", "model.layers.{layer}.mlp.up_proj.weight", axes=(1, 0)),
    )

`{layer}` marks weights that we stack: layer l is the l-th entry of our leading axis, or, where a
stack begins later in their model, the entry l - `first`. A tensor that
is whole in their layout but split in ours (a fused query, key and value) has several paths, joined
along its first axis or the axis that the rule names. A tensor that we do not have (a bias that is
always zero) has no path.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from unicom_jax.core.module import ParamSpec, Specs, iter_specs

LAYER = "{layer}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where one foreign tensor, or one per layer, is in our tree.

    Attributes:
      ours: path of our weight, joined by "/"; several paths are parts of theirs; none: theirs is
        all zeros, of shape `shape`.
      theirs: the foreign name, with `{layer}` where ours is stacked.
      axes: their axes in our order: ours = theirs.transpose(axes). () keeps the order.
      shape: their shape (of one part), if ours has more axes; () if it follows from ours.
      along: their axis along which several parts are joined.
      first: their number of our layer 0.
    """

    ours: str | tuple[str, ...]
    theirs: str
    axes: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    along: int = 0
    first: int = 0

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def stacked(self) -> bool:
        return LAYER in self.theirs

    def name(self, layer: int | None) -> str:
        """The foreign name of our layer number `layer`; None if nothing is stacked."""
        if layer is None:
            return self.theirs
        return self.theirs.replace(LAYER, str(self.first + layer))

    def part_shape(self, ours: Sequence[int]) -> tuple[int, ...]:
        """The shape of one part of theirs, from the shape of one layer of ours."""
        if self.shape:
            return self.shape
        if not self.axes:
            return tuple(ours)
        return tuple(ours[self.axes.index(axis)] for axis in range(len(self.axes)))

    def to_ours(self, part: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """One part of theirs as one layer of ours of shape `shape`; a view if possible."""
        return (part.transpose(self.axes) if self.axes else part).reshape(shape)

    def to_theirs(self, layer: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        shape = self.part_shape(layer.shape)
        if not self.axes:
            return layer.reshape(shape)
        turned = layer.reshape([shape[axis] for axis in self.axes])
        return turned.transpose(np.argsort(self.axes))


Table = Sequence[Rule]


def linear(ours: str, theirs: str, *, bias: bool = True) -> Table:
    """Rules for a `core.layers.Linear` and a torch `Linear`, whose weight is (out, in)."""
    rules = (Rule(f"{ours}/kernel", f"{theirs}.weight", axes=(1, 0)),)
    return (*rules, Rule(f"{ours}/bias", f"{theirs}.bias")) if bias else rules


def norm(ours: str, theirs: str, *, bias: bool = True) -> Table:
    """Rules for a norm's scale and, if it has one, its bias."""
    rules = (Rule(f"{ours}/scale", f"{theirs}.weight"),)
    return (*rules, Rule(f"{ours}/bias", f"{theirs}.bias")) if bias else rules


def prefixed(table: Table, ours: str = "", theirs: str = "") -> tuple[Rule, ...]:
    """The same table for a model that is part of a larger one, on either side."""
    return tuple(
        dataclasses.replace(
            rule,
            ours=tuple(ours + path for path in rule.paths),
            theirs=theirs + rule.theirs,
        )
        for rule in table
    )


@dataclasses.dataclass(frozen=True)
class Place:
    """One foreign tensor: its shape, its rule and layer, and the sizes of the weights it holds."""

    rule: Rule
    layer: int | None
    shape: tuple[int, ...]
    specs: tuple[ParamSpec, ...]

    def layer_shape(self, part: int) -> tuple[int, ...]:
        """The shape of our weight number `part`, without the layer axis."""
        return self.specs[part].shape[self.layer is not None :]

    def read(
        self,
        path: str,
        index: Sequence[slice],
        read: Callable[[tuple[slice, ...]], np.ndarray],
    ) -> np.ndarray:
        """A part of one layer of our weight at `path`.

        Args:
          index: which part, one slice of step 1 per axis of the layer.
          read: gives the part of the foreign tensor in a window of slices.
        """
        number = self.rule.paths.index(path)
        before = [self.rule.part_shape(self.layer_shape(n)) for n in range(number)]
        shift = sum(part[self.rule.along] for part in before)
        shape = self.layer_shape(number)
        if self.rule.shape:  # axes are split or joined, so slices do not correspond
            window = [slice(0, size) for size in self.rule.shape]
            return self.rule.to_ours(read(self._shifted(window, shift)), shape)[tuple(index)]
        axes = self.rule.axes or range(len(shape))
        window = [index[axes.index(axis)] for axis in range(len(shape))]
        part = [one.stop - one.start for one in index]
        return self.rule.to_ours(read(self._shifted(window, shift)), part)

    def _shifted(self, window: list[slice], shift: int) -> tuple[slice, ...]:
        """The window, moved by `shift` along the axis of the parts."""
        if shift:
            one = window[self.rule.along]
            window[self.rule.along] = slice(one.start + shift, one.stop + shift)
        return tuple(window)

    def join(self, read: Callable[[str, int | None], np.ndarray]) -> np.ndarray:
        """The foreign tensor, contiguous, from `read(path, layer)` of our weights."""
        if not self.rule.paths:
            return np.zeros(self.shape, np.float32)
        parts = [self.rule.to_theirs(read(path, self.layer)) for path in self.rule.paths]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self.rule.along)
        return np.ascontiguousarray(joined)


def places(table: Table, specs: Specs) -> dict[str, Place]:
    """Every foreign tensor of a model by name, in the order of the table.

    Raises:
      ValueError: the table and the model disagree: a weight has no rule or two, the model lacks a
        path, or two tensors have the same name.
    """
    weights = {"/".join(path): spec for path, spec in iter_specs(specs)}
    missing, found = dict.fromkeys(weights), {}
    for rule in table:
        for path in rule.paths:
            if path not in weights:
                raise ValueError(f"the table names {path!r}, which the model does not have")
            if path not in missing:
                raise ValueError(f"the table names {path!r} twice")
            del missing[path]
        held = tuple(weights[path] for path in rule.paths)
        for layer in range(held[0].shape[0]) if rule.stacked else (None,):
            name = rule.name(layer)
            if name in found:
                raise ValueError(f"two rules of the table name the tensor {name!r}")
            found[name] = Place(rule, layer, _joined_shape(rule, held), held)
    if missing:
        raise ValueError(f"the table has no rule for {next(iter(missing))!r}")
    return found


def _joined_shape(rule: Rule, specs: Sequence[ParamSpec]) -> tuple[int, ...]:
    shapes = [rule.part_shape(spec.shape[rule.stacked :]) for spec in specs]
    for shape, spec in zip(shapes, specs, strict=True):
        if math.prod(shape) != math.prod(spec.shape[rule.stacked :]):
            raise ValueError(f"{rule.theirs!r} of shape {shape} cannot hold {spec.shape}")
    if len(shapes) < 2:
        return shapes[0] if shapes else rule.shape
    joined = list(shapes[0])
    joined[rule.along] = sum(shape[rule.along] for shape in shapes)
    return tuple(joined)
