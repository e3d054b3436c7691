"""Questions with one-word answers that the judge can re-derive."""

from __future__ import annotations

import collections
import random

from data_pipelines.examples import Question
from data_pipelines.scenes.facts import Phrase, related
from data_pipelines.scenes.language import NUMBERS, PLURALS, noun, phrase_text, true_relation
from data_pipelines.scenes.scene import (
    LETTER,
    RELATIONS,
    Scene,
    SceneConfig,
    SceneObject,
)

KINDS = ("count", "colour", "shape", "position", "yesno", "text")


def _only(items: list[SceneObject]) -> bool:
    return len(items) == 1


def named(item: SceneObject) -> str:
    """ "red circle"."""
    return f"{item.colour} {noun(item.shape, item.letter)}"


def _unique(scene: Scene) -> list[SceneObject]:
    """Objects that are identified by colour and shape alone."""
    looks = collections.Counter((item.kind, item.colour) for item in scene.objects)
    return [item for item in scene.objects if looks[item.kind, item.colour] == 1]


def _count(scene: Scene, config: SceneConfig, rng: random.Random) -> Question | None:
    item = rng.choice(scene.objects)
    alike_shape = sum(other.shape == item.shape for other in scene.objects)
    alike_colour = sum(other.colour == item.colour for other in scene.objects)
    form = rng.randrange(3)
    # Most objects are the only ones of their kind: ask about them less, or "one" would be a good
    # blind guess.
    if form == 1 and (alike_shape > 1 or rng.random() < 0.3):
        return Question(f"how many {PLURALS[item.shape]} are there?", NUMBERS[alike_shape], "count")
    if form == 2 and (alike_colour > 1 or rng.random() < 0.3):
        text = f"how many {item.colour} objects are there?"
        return Question(text, NUMBERS[alike_colour], "count")
    return Question("how many objects are there?", NUMBERS[len(scene.objects)], "count")


def _colour(scene: Scene, config: SceneConfig, rng: random.Random) -> Question | None:
    items = [a for a in scene.objects if _only([b for b in scene.objects if b.kind == a.kind])]
    if not items:
        return _plural_look(scene, "colour")
    item = rng.choice(items)
    return Question(f"what colour is the {noun(item.shape, item.letter)}?", item.colour, "colour")


def _shape(scene: Scene, config: SceneConfig, rng: random.Random) -> Question | None:
    items = [a for a in scene.objects if _only([b for b in scene.objects if b.colour == a.colour])]
    if not items:
        return _plural_look(scene, "shape")
    item = rng.choice(items)
    return Question(f"what shape is the {item.colour} object?", item.shape, "shape")


def _plural_look(scene: Scene, key: str) -> Question | None:
    """A question about the `key` (colour or shape) of all objects, if they share it."""
    values = {getattr(item, key) for item in scene.objects}
    if len(values) > 1:
        return None
    return Question(f"what {key} are the objects?", values.pop(), key)


def _position(scene: Scene, config: SceneConfig, rng: random.Random) -> Question | None:
    items = _unique(scene)
    if not items:
        return None
    item = rng.choice(items)
    return Question(f"where is the {named(item)}?", item.place, "position")


def _yesno(scene: Scene, config: SceneConfig, rng: random.Random) -> Question | None:
    answer = rng.random() < 0.5
    items = _unique(scene)
    if len(items) >= 2 and rng.random() < 0.5:
        a, b = rng.sample(items, 2)
        relation = true_relation(a, b, rng)
        if not answer:
            relation = rng.choice([name for name in RELATIONS if not related(a, name, b)])
        return Question(
            f"is the {named(a)} {relation} the {named(b)}?", "yes" if answer else "no", "yesno"
        )
    item = rng.choice(scene.objects)
    phrase = Phrase(1, item.shape, item.letter, item.colour)
    answer = answer or not _has_near_miss(item, scene, config)
    while not answer and any(phrase.fits(other) for other in scene.objects):
        shape, colour = item.shape, item.colour  # a near miss: change the colour or the shape
        if rng.random() < 0.5 and len(config.colours) > 1 or len(config.shapes) == 1:
            colour = rng.choice(config.colours)
        else:
            shape = rng.choice(config.shapes)
        letter = (item.letter or rng.choice(config.letters)) if shape == LETTER else ""
        phrase = Phrase(1, shape, letter, colour)
    return Question(f"is there {phrase_text(phrase)}?", "yes" if answer else "no", "yesno")


def _has_near_miss(item: SceneObject, scene: Scene, config: SceneConfig) -> bool:
    """Whether the scene lacks an object that differs from `item` in colour or shape alone."""

    def misses(shape: str, colour: str) -> bool:
        letters = ("",) if shape != LETTER else (item.letter,) if item.letter else config.letters
        phrases = (Phrase(1, shape, letter, colour) for letter in letters)
        return any(not any(phrase.fits(other) for other in scene.objects) for phrase in phrases)

    return any(misses(item.shape, colour) for colour in config.colours) or any(
        misses(shape, item.colour) for shape in config.shapes
    )


def _text(scene: Scene, config: SceneConfig, rng: random.Random) -> Question | None:
    letters = [item for item in scene.objects if item.letter]
    items = [a for a in letters if _only([b for b in letters if b.colour == a.colour])]
    if not items:
        same = {item.letter for item in letters}
        return Question("which letter is written?", same.pop(), "text") if len(same) == 1 else None
    item = rng.choice(items)
    what = "letter" if len(letters) == 1 else f"{item.colour} letter"
    return Question(f"which {what} is written?", item.letter, "text")


_ASK = {
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "position": _position,
    "yesno": _yesno,
    "text": _text,
}


def questions(scene: Scene, config: SceneConfig, rng: random.Random) -> tuple[Question, ...]:
    """One question of each kind that has an unambiguous answer, in the order of KINDS."""
    return tuple(
        question for kind in KINDS if (question := _ASK[kind](scene, config, rng)) is not None
    )
