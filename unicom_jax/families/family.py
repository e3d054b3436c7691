"""`Family`: all the differences between families of models, as one row of a table per family.

The table is `families.build.FAMILIES`, by `unified.pathway`. Training, loading, planning,
inference, import and export read the row; none of them tests for a family by name.

A row names weights by part (`runs.stages.PARTS`), each trained by stages of its own, or by subtree
of a part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from unicom_jax.core.module import Module
from unicom_jax.families.images import ImageModel
from unicom_jax.models.latent_codec import LatentCodec
from unicom_jax.models.paint_space import PaintSpace, PixelSpace
from unicom_jax.models.transformer import Transformer

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Subtree:
    """The weights of a part, or some of them.

    Attributes:
      part: a key of `runs.stages.PARTS`.
      keys: one top-level key, which selects its subtree; or several, which select a tree with
        these keys; None: everything.
      fresh: keys of the selection that are left out; a model that starts from the selection
        initialises them at random.
      optional: which of several keys the part may lack.
    """

    part: str
    keys: str | tuple[str, ...] | None = None
    fresh: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def read(self, tree: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The selected ones of a tree's top-level keys; None: all."""
        if self.keys is None:
            return None
        if isinstance(self.keys, str):
            return (self.keys,)
        return tuple(key for key in self.keys if key in tree or key not in self.optional)

    def of(self, tree: Mapping[str, Any]) -> Any:
        """Selects from a tree that has the part's top-level keys."""
        if isinstance(self.keys, str):
            found = tree[self.keys]
        else:
            found = tree if self.keys is None else {key: tree[key] for key in self.read(tree)}
        return {k: v for k, v in found.items() if k not in self.fresh} if self.fresh else found

    def placed(self, weights: Any) -> Any:
        """The inverse of `of`: a tree with those of the part's top-level keys that are selected."""
        return {self.keys: weights} if isinstance(self.keys, str) else weights

    def module_of(self, part: Module) -> Module:
        """The module of these weights: for one key, the part's attribute of that name."""
        return getattr(part, self.keys) if isinstance(self.keys, str) else part


def pixels(config: Config) -> PaintSpace:
    """Tokens are patches of pixels."""
    return PixelSpace(config["data"]["patch"])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """A family of unified models.

    Attributes:
      images: builds the image side.
      codec: builds the codec that decodes drawn latents. Its weights are the whole tree `codec` of
        `in_model`.
      space: builds the space in which the codec's tokens are painted.
      frozen: weights that `ImageModel.prepare` reads and no stage of the model trains: name in its
        argument `frozen` -> weights of a part that an earlier stage trained.
      starts_from: given a configuration, the top-level keys of the model's own weights that start
        as weights of another part. They never start at random, except `fresh` ones, so that part
        has to be trained or imported first.
      in_model: the weights that a trained model needs besides its own: name of the tree -> weights
        of a part, either all or those of one key; only `codec` may have several keys. They contain
        those of `frozen`.
      cast: regular expression for the paths of the model's own weights that, like its
        transformer's, are only used in the compute dtype ("embedding/projector/.*"); "": none.
      details: regular expression for the paths of the model's own weights that let details into
        what its head draws; if they are 0, it draws by semantics alone; "": it has none.
      heads: configuration keys that set numbers of attention heads, besides the transformer's and
        the vision tower's.
      remat: the key that sets what the largest stack keeps for the backward pass.
      positions: kinds of positions of a picture's slots, `unified.image_positions`.
    """

    images: Callable[[Config, Transformer], ImageModel]
    codec: Callable[[Config], LatentCodec]
    space: Callable[[Config], PaintSpace] = pixels
    frozen: Mapping[str, Subtree]
    starts_from: Callable[[Config], Mapping[str, Subtree]] = lambda config: {}
    in_model: Mapping[str, Subtree]
    cast: str = ""
    details: str = ""
    heads: tuple[str, ...] = ()
    remat: str = "unified.transformer.remat"
    positions: tuple[str, ...] = ("grid", "plain")

    def __post_init__(self) -> None:
        for name in self.frozen:
            self._place(name)

    def frozen_of(self, trees: Mapping[str, Any]) -> dict[str, Any]:
        """The argument `frozen` of `ImageModel.prepare`, from the trees of `in_model`."""
        found = {}
        for name, wanted in self.frozen.items():
            tree = self._place(name)
            whole = self.in_model[tree].keys is None
            found[name] = wanted.of(trees[tree]) if whole else trees[tree]
        return found

    def _place(self, name: str) -> str:
        """The tree of `in_model` that contains a member of `frozen`."""
        wanted = self.frozen[name]
        for tree, held in self.in_model.items():
            if held == wanted or held == Subtree(wanted.part):
                return tree
        raise ValueError(f"a family's frozen {name} ({wanted}) is in no tree of its in_model")
