"""What a sentence claims about a picture, and whether that holds."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from data_pipelines.scenes.scene import RELATION_MARGIN, RELATIONS, SceneObject


@dataclasses.dataclass(frozen=True)
class Phrase:
    """`count` objects with the named properties; an empty property is left open."""

    count: int = 1
    shape: str = ""
    letter: str = ""
    colour: str = ""
    size: str = ""
    place: str = ""

    def fits(self, item: SceneObject) -> bool:
        """Whether an object has every property that the phrase names."""
        return all(
            getattr(item, key) == getattr(self, key) for key in PROPERTIES if getattr(self, key)
        )

    def __str__(self) -> str:
        words = (str(self.count), self.size, self.colour, self.shape, self.letter, self.place)
        return " ".join(word for word in words if word)


PROPERTIES = ("shape", "letter", "colour", "size", "place")


@dataclasses.dataclass(frozen=True)
class Description:
    """A whole picture in phrases. It claims completeness: the picture has these objects and no
    others.

    Attributes:
      phrases: the objects.
      relations: (i, name of a relation, j) between phrases i and j, which each mean one object.
      background: its name, "" when left open.
    """

    phrases: tuple[Phrase, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    background: str = ""


def related(a: SceneObject, relation: str, b: SceneObject) -> bool:
    """Whether a is displaced from b along the relation's axis by more than the margin."""
    x, y = RELATIONS[relation]
    return x * (a.x - b.x) + y * (a.y - b.y) > RELATION_MARGIN


def check(
    description: Description, objects: Sequence[SceneObject], background: str = ""
) -> tuple[bool, str]:
    """Whether a description is true of a picture.

    Args:
      description: the claim.
      objects: all objects of the picture, either the true ones or those that the judge read.
      background: name of the picture's ground; compared only if the description names one.

    Returns:
      (holds, reason): the reason names the first claim that fails, "" if all hold.
    """
    if description.background and description.background != background:
        return False, f"background is {background or 'unknown'}, not {description.background}"
    slots = [i for i, phrase in enumerate(description.phrases) for _ in range(phrase.count)]
    for phrase in description.phrases:
        found = sum(phrase.fits(item) for item in objects)
        if found < phrase.count:
            return False, f"{found} of {phrase}"
    if len(slots) != len(objects):
        return False, f"{len(objects)} objects, not {len(slots)}"
    # At most four objects: trying all 24 assignments is the plainest exact matching.
    matched = False
    for order in itertools.permutations(objects):
        if all(description.phrases[i].fits(item) for i, item in zip(slots, order, strict=True)):
            matched = True
            if all(
                related(order[slots.index(i)], r, order[slots.index(j)])
                for i, r, j in description.relations
            ):
                return True, ""
    if not matched:
        return False, "no assignment of the objects to the phrases"
    i, relation, j = description.relations[0]
    return False, f"{description.phrases[i]} is not {relation} {description.phrases[j]}"
