"""Edits of scenes: an instruction in words and the exact scene that results."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Callable

from data_pipelines.scenes.facts import Phrase
from data_pipelines.scenes.language import noun, phrase_text
from data_pipelines.scenes.scene import (
    LETTER,
    MAX_OBJECTS,
    PLACES,
    Scene,
    SceneConfig,
    SceneObject,
    fits,
)

EDIT_KINDS = ("recolour", "remove", "add", "replace", "move")


@dataclasses.dataclass(frozen=True)
class SceneEdit:
    """An edit with the scenes before and after it.

    Attributes:
      kind: one of EDIT_KINDS.  instruction: in words.
      before, after: `after` is fully determined by `before` and the instruction.
      changed: indices of the objects of `before` that the edit touches (none for "add").
    """

    kind: str
    instruction: str
    before: Scene
    after: Scene
    changed: tuple[int, ...]


def _targets(scene: Scene, rng: random.Random, alone: bool) -> tuple[int, ...]:
    """Indices of a group with one colour and shape (of one object if `alone`); () if none."""
    groups: dict[tuple, list[int]] = collections.defaultdict(list)
    for i, item in enumerate(scene.objects):
        groups[item.kind, item.colour].append(i)
    fitting = [tuple(group) for group in groups.values() if len(group) == 1 or not alone]
    return rng.choice(fitting) if fitting else ()


def _named(scene: Scene, group: tuple[int, ...]) -> str:
    item = scene.objects[group[0]]
    return f"the {item.colour} {noun(item.shape, item.letter, len(group) > 1)}"


def _changed(scene: Scene, group: tuple[int, ...], **values: object) -> Scene:
    """The scene with some fields of some objects replaced."""
    items = [
        dataclasses.replace(a, **values) if i in group else a for i, a in enumerate(scene.objects)
    ]
    return dataclasses.replace(scene, objects=tuple(items))


def _recolour(scene: Scene, config: SceneConfig, rng: random.Random) -> SceneEdit | None:
    group = _targets(scene, rng, alone=False)
    colours = [name for name in config.colours if name != scene.objects[group[0]].colour]
    if not colours:
        return None
    colour = rng.choice(colours)
    text = f"make {_named(scene, group)} {colour}"
    return SceneEdit("recolour", text, scene, _changed(scene, group, colour=colour), group)


def _remove(scene: Scene, config: SceneConfig, rng: random.Random) -> SceneEdit | None:
    group = _targets(scene, rng, alone=False)
    if len(group) == len(scene.objects):
        return None
    rest = tuple(item for i, item in enumerate(scene.objects) if i not in group)
    return SceneEdit(
        "remove",
        f"remove {_named(scene, group)}",
        scene,
        dataclasses.replace(scene, objects=rest),
        group,
    )


def _random_look(config: SceneConfig, rng: random.Random) -> tuple[str, str]:
    shape = rng.choice(config.shapes)
    return shape, rng.choice(config.letters) if shape == LETTER else ""


def _add(scene: Scene, config: SceneConfig, rng: random.Random) -> SceneEdit | None:
    shape, letter = _random_look(config, rng)
    colour, size = rng.choice(config.colours), rng.choice(config.object_sizes)
    # The exact centre of a named place, so that the words determine the picture.
    spots = [SceneObject(shape, colour, size, *PLACES[place], letter) for place in PLACES]
    spots = [item for item in spots if fits(item, scene.objects, scene.height, scene.width)]
    if len(scene.objects) >= MAX_OBJECTS or not spots:
        return None
    item = rng.choice(spots)
    text = "add " + phrase_text(Phrase(1, shape, letter, colour, size, item.place))
    return SceneEdit(
        "add", text, scene, dataclasses.replace(scene, objects=(*scene.objects, item)), ()
    )


def _replace(scene: Scene, config: SceneConfig, rng: random.Random) -> SceneEdit | None:
    group = _targets(scene, rng, alone=True)
    shape, letter = _random_look(config, rng)
    if not group or (shape, letter) == scene.objects[group[0]].kind:
        return None
    text = f"replace {_named(scene, group)} with {phrase_text(Phrase(1, shape, letter))}"
    return SceneEdit(
        "replace", text, scene, _changed(scene, group, shape=shape, letter=letter), group
    )


def _move(scene: Scene, config: SceneConfig, rng: random.Random) -> SceneEdit | None:
    group = _targets(scene, rng, alone=True)
    if not group:
        return None
    item = scene.objects[group[0]]
    others = [other for other in scene.objects if other is not item]
    moved = [
        dataclasses.replace(item, x=x, y=y) for name, (x, y) in PLACES.items() if name != item.place
    ]
    moved = [spot for spot in moved if fits(spot, others, scene.height, scene.width)]
    if not moved:
        return None
    spot = rng.choice(moved)
    text = f"move {_named(scene, group)} to the {spot.place}"
    return SceneEdit("move", text, scene, _changed(scene, group, x=spot.x, y=spot.y), group)


_MAKE: dict[str, Callable[[Scene, SceneConfig, random.Random], SceneEdit | None]] = {
    "recolour": _recolour,
    "remove": _remove,
    "add": _add,
    "replace": _replace,
    "move": _move,
}


def sample_edit(scene: Scene, config: SceneConfig, rng: random.Random) -> SceneEdit | None:
    """One edit of a random kind that the scene allows; None if it allows none (one colour and
    one shape, and four objects that cannot move).
    """
    edits = (_MAKE[kind](scene, config, rng) for kind in rng.sample(EDIT_KINDS, len(EDIT_KINDS)))
    return next((edit for edit in edits if edit is not None), None)
