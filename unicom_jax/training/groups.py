"""Parameter groups: which weights of a stage are frozen, learn slower, or do not decay.

    config.sft.groups = (
        {"match": "transformer/embedding/.*", "frozen": True},
        {"match": "transformer/.*", "learning_rate": 0.1, "name": "reader"},
        {"match": ".*/latent_in/.*", "weight_decay": 0.0},
    )

A weight belongs to the first group with a `match`, a regular expression, that matches the beginning
of its path (as for `freeze`); a weight that none matches trains as the stage's own keys say.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from unicom_jax.core.module import Specs, iter_specs

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """One group, as `groups` of a stage's configuration describes it.

    Attributes:
      match: regular expression for the beginning of paths.
      name: name in metrics and errors; by default `match`.
      learning_rate: factor of the stage's learning rate.
      weight_decay: factor of the stage's weight decay, for weights that decay at all (matrices).
      frozen: whether the weights are frozen, without gradients or moments.
    """

    match: str
    name: str = ""
    learning_rate: float = 1.0
    weight_decay: float = 1.0
    frozen: bool = False

    @property
    def label(self) -> str:
        return self.name or self.match


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups of a stage's weights.

    Attributes:
      groups: the groups, in order.
      member: path -> index of the group, for each weight that has one.
    """

    groups: tuple[Group, ...] = ()
    member: Mapping[Path, int] = dataclasses.field(default_factory=dict)

    def of(self, path: Path) -> Group | None:
        """The group of a weight; None for one that trains as the stage's own keys say."""
        return self.groups[self.member[path]] if path in self.member else None

    def label(self, path: Path) -> str:
        """The group's name in metrics, or for a weight without a group its part of the model."""
        group = self.of(path)
        return group.label if group else path[0]

    def frozen(self) -> tuple[str, ...]:
        """Expressions that match the frozen weights and no others."""
        return tuple(
            re.escape("/".join(path)) + "$"
            for path, index in self.member.items()
            if self.groups[index].frozen
        )

    def rates(self) -> dict[str, float]:
        """Learning-rate factor of each trained group, by name."""
        return {group.label: group.learning_rate for group in self.groups if not group.frozen}


def read_groups(given: Sequence[Mapping[str, Any]], specs: Specs, key: str = "groups") -> Groups:
    """The groups that a configuration describes, and the weights of `specs` in each.

    Args:
      key: the configuration key, for errors.

    Raises:
      ValueError: an unknown or missing field, an impossible factor, two groups of one name, or a
        group without weights.
    """
    groups = tuple(_read_group(one, f"{key}[{index}]") for index, one in enumerate(given))
    labels = [group.label for group in groups]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"{key}: two groups are named {label!r}; give each its own name")
    paths = [path for path, _ in iter_specs(specs)]
    member = {}
    for path in paths:
        text = "/".join(path)
        found = next((i for i, group in enumerate(groups) if re.match(group.match, text)), None)
        if found is not None:
            member[path] = found
    for index, group in enumerate(groups):
        if index not in member.values():
            tops = ", ".join(sorted({"/".join(path[:2]) for path in paths})[:12])
            raise ValueError(
                f"{key}[{index}]: match={group.match!r} matches no weight that an earlier group "
                f"does not have; weights begin with {tops}"
            )
    return Groups(groups, member)


def _read_group(given: Mapping[str, Any], key: str) -> Group:
    fields = {field.name: field for field in dataclasses.fields(Group)}
    if not isinstance(given, Mapping) or "match" not in given:
        raise ValueError(
            f"{key}={given!r} is not a group; write {{'match': 'transformer/.*', ...}}"
        )
    for name, value in given.items():
        if name not in fields:
            raise ValueError(f"{key}: {name!r} is unknown; a group has {', '.join(fields)}")
        kind = fields[name].type
        known = {"float": (int, float), "str": (str,), "bool": (bool,)}[kind]
        if type(value) not in known:  # a bool is an int too
            raise ValueError(f"{key}: {name}={value!r} should be a {kind}")
    group = Group(**given)
    try:
        re.compile(group.match)
    except re.error as error:
        raise ValueError(
            f"{key}: match={group.match!r} is not a regular expression: {error}"
        ) from None
    if group.learning_rate <= 0:
        raise ValueError(
            f"{key}: learning_rate={group.learning_rate} is a factor above 0; to keep weights as "
            "they are, set frozen=True"
        )
    if group.weight_decay < 0:
        raise ValueError(f"{key}: weight_decay={group.weight_decay} is a factor of at least 0")
    return group
