"""`Family`: all in which one family of models differs from another, as one row of a table.

The table is `families.build.FAMILIES`, by `unified.pathway`. Training, loading, planning,
inference, import and export read the row; none of them asks for a family by name.

A row speaks of weights as parts (`runs.stages.PARTS`), each trained by stages of its own, and of
subtrees of them.
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
    """Weights of a part, or some of them.

    Attributes:
      part: a key of `runs.stages.PARTS`.
      keys: one top-level key, which stands for its subtree, or several, which stay a tree; None:
        all.
      fresh: keys of that subtree that are not meant: what starts from the rest of it starts with
        random ones.
    """

    part: str
    keys: str | tuple[str, ...] | None = None
    fresh: tuple[str, ...] = ()

    @property
    def read(self) -> tuple[str, ...] | None:
        """The top-level keys; None: all."""
        return (self.keys,) if isinstance(self.keys, str) else self.keys

    def of(self, tree: Mapping[str, Any]) -> Any:
        """What is meant of a tree that has the part's top-level keys."""
        if isinstance(self.keys, str):
            found = tree[self.keys]
        else:
            found = tree if self.keys is None else {key: tree[key] for key in self.keys}
        return {k: v for k, v in found.items() if k not in self.fresh} if self.fresh else found

    def placed(self, weights: Any) -> Any:
        """The inverse of `of`: a tree with the part's top-level keys, as far as they are meant."""
        return {self.keys: weights} if isinstance(self.keys, str) else weights

    def module_of(self, part: Module) -> Module:
        """The module of these weights: of one key the part's attribute of that name."""
        return getattr(part, self.keys) if isinstance(self.keys, str) else part


def pixels(config: Config) -> PaintSpace:
    """Tokens are patches of pixels."""
    return PixelSpace(config["data"]["patch"])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """A family of unified models.

    Attributes:
      images: builds its image side.
      codec: builds what decodes the latents that it draws. Its weights are all of the tree `codec`
        of `in_model`.
      space: in what the codec's tokens are painted.
      frozen: what `ImageModel.prepare` reads and no stage of the model trains: name in its argument
        `frozen` -> weights of a part that an earlier stage trained.
      starts_from: top-level keys of the model's own weights that begin as weights of another part,
        under a configuration. Nothing of them starts at random: that part has to be trained or
        imported before.
      in_model: what a trained model is used with besides its own weights: name of the tree ->
        weights of a part, all of them or those of one key; only `codec` may be of several keys.
        They contain those of `frozen`.
      cast: of the model's own weights those that, like its transformer's, are used in the compute
        dtype only, as a regular expression of their path ("embedding/projector/.*"); "": none.
      details: of the model's own weights those that let details into what its head draws, as such
        an expression: with zeros there it draws by semantics alone; "": it has none.
      heads: keys of the configuration that set numbers of attention heads, besides the
        transformer's and the vision tower's.
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

    def __post_init__(self) -> None:
        for name in self.frozen:
            self._place(name)

    def frozen_of(self, trees: Mapping[str, Any]) -> dict[str, Any]:
        """`frozen` of `ImageModel.prepare`, from the trees that a model is used with."""
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
