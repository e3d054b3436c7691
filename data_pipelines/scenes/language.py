"""The small English grammar of Scenes, written and parsed. Few words and fixed forms, so that tiny
models can learn it."""

from __future__ import annotations

import collections
import dataclasses
import random
import re

from data_pipelines.scenes.facts import Description, Phrase, related
from data_pipelines.scenes.scene import (
    BACKGROUNDS,
    COLOURS,
    LETTER,
    LETTERS,
    PLACES,
    PLAIN_SHAPES,
    RADII,
    RELATIONS,
    Scene,
    SceneObject,
)

NUMBERS = ("no", "one", "two", "three", "four")
PLURALS = {**{shape: shape + "s" for shape in (*PLAIN_SHAPES, LETTER)}, "cross": "crosses"}
_SINGULARS = {plural: shape for shape, plural in PLURALS.items()}
PLACE_WORDS = {
    place: (
        "in the " if place == "middle" else "on the " if place in ("left", "right") else "at the "
    )
    + place
    for place in PLACES
}


class CaptionError(ValueError):
    """A text that is not a caption of this grammar; the message names the words at fault."""


def listed(items: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def noun(shape: str, letter: str = "", plural: bool = False) -> str:
    """ "circle", "circles", "letter A", "letters A"."""
    return (PLURALS[shape] if plural else shape) + (f" {letter}" if letter else "")


def phrase_text(phrase: Phrase, article: str = "") -> str:
    """A phrase in words: "a large red circle on the left"; an `article` replaces the number."""
    words = [phrase.size, phrase.colour, noun(phrase.shape, phrase.letter, phrase.count > 1)]
    words = [word for word in words if word]
    first = article or (
        NUMBERS[phrase.count] if phrase.count > 1 else "an" if words[0][0] in "aeiou" else "a"
    )
    return " ".join([first, *words, *([PLACE_WORDS[phrase.place]] if phrase.place else [])])


def describe(description: Description) -> str:
    """Writes a description. A single relation between two phrases without places joins them; other
    relations become separate sentences."""
    texts = [phrase_text(phrase) for phrase in description.phrases]
    relations = list(description.relations)
    if (
        len(texts) == 2
        and len(relations) == 1
        and not any(phrase.place for phrase in description.phrases)
    ):
        i, relation, j = relations.pop()
        head = f"{texts[i]} {relation} {texts[j]}"
    else:
        head = listed(texts)
    if description.background:
        article = "an" if description.background[0] in "aeiou" else "a"
        head += f" on {article} {description.background} background"
    for i, relation, j in relations:
        pair = [dataclasses.replace(description.phrases[k], size="", place="") for k in (i, j)]
        head += f". {phrase_text(pair[0], 'the')} is {relation} {phrase_text(pair[1], 'the')}"
    return head


_PHRASE = re.compile(
    rf"(?P<number>an?|the|{'|'.join(NUMBERS[1:])})"
    rf"(?: (?P<size>{'|'.join(RADII)}))?(?: (?P<colour>{'|'.join(COLOURS)}))?"
    rf" (?P<noun>{'|'.join([*_SINGULARS, *PLURALS])})(?: (?P<letter>{'|'.join(LETTERS)}))?"
    rf"(?: (?P<place>{'|'.join(PLACE_WORDS.values())}))?",
    re.IGNORECASE,
)
_BACKGROUND = re.compile(rf" on an? ({'|'.join(BACKGROUNDS)}) background$")
_RELATION = re.compile(rf" (?:is )?({'|'.join(RELATIONS)}) ")
_PLACE_NAMES = {words: place for place, words in PLACE_WORDS.items()}


def _parse_phrase(text: str) -> Phrase:
    match = _PHRASE.fullmatch(text)
    if match is None:
        raise CaptionError(f"not a phrase of the caption grammar: {text!r}")
    part = {key: value or "" for key, value in match.groupdict().items()}
    count = NUMBERS.index(part["number"]) if part["number"] in NUMBERS else 1
    shape = _SINGULARS.get(part["noun"], part["noun"])
    if part["letter"] and shape != LETTER:
        raise CaptionError(f"only a letter can be named by a letter: {text!r}")
    return Phrase(
        count,
        shape,
        part["letter"].upper(),
        part["colour"],
        part["size"],
        _PLACE_NAMES.get(part["place"], ""),
    )


def parse(text: str) -> Description:
    """Reads a caption back into facts; the inverse of `describe`.

    Raises:
      CaptionError: the text does not follow the grammar, or a relation refers to a phrase that does
        not exist.
    """
    head, *sentences = text.strip().rstrip(".").split(". ")
    found = _BACKGROUND.search(head)
    background = found[1] if found else ""
    head = head[: found.start()] if found else head
    parts = _RELATION.split(head)
    relations: list[tuple[int, str, int]] = []
    if len(parts) == 3:
        phrases = [_parse_phrase(parts[0]), _parse_phrase(parts[2])]
        relations.append((0, parts[1], 1))
    else:
        phrases = [_parse_phrase(part) for part in re.split(r", | and ", head)]
    for sentence in sentences:
        parts = _RELATION.split(sentence)
        if len(parts) != 3:
            raise CaptionError(f"not a relation: {sentence!r}")
        i, j = (_referent(phrases, _parse_phrase(part)) for part in (parts[0], parts[2]))
        relations.append((i, parts[1], j))
    return Description(tuple(phrases), tuple(relations), background)


def _referent(phrases: list[Phrase], named: Phrase) -> int:
    """Index of the one phrase that, for example, "the red circle" refers to."""
    look = (named.shape, named.letter, named.colour)
    found = [
        i for i, p in enumerate(phrases) if (p.shape, p.letter, p.colour) == look and p.count == 1
    ]
    if len(found) != 1:
        raise CaptionError(f"{len(found)} phrases match '{phrase_text(named, 'the')}'")
    return found[0]


def reading_order(objects: tuple[SceneObject, ...]) -> tuple[SceneObject, ...]:
    """Row by row, left to right: one order for all texts, so the picture determines them."""
    return tuple(sorted(objects, key=lambda item: (list(PLACES).index(item.place), item.x)))


def grouped(objects: tuple[SceneObject, ...], properties: tuple[str, ...]) -> tuple[Phrase, ...]:
    """Phrases for all objects, naming only `properties`; equal ones merge and count."""
    keys = ("shape", "letter", *properties)
    counts = collections.Counter(
        tuple((key, getattr(item, key)) for key in keys) for item in objects
    )
    return tuple(Phrase(count=count, **dict(look)) for look, count in counts.items())


def true_relation(a: SceneObject, b: SceneObject, rng: random.Random) -> str:
    """One of the relations of a to b; objects that do not overlap always have one."""
    return rng.choice([name for name in RELATIONS if related(a, name, b)])


def captions(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """All captions of a scene: the short one (colours and shapes) first, the most detailed one
    last.

    Between them: shapes alone; for two objects a spatial relation, with or without colours; sizes
    and places.
    """
    objects = reading_order(scene.objects)
    short = Description(grouped(objects, ("colour",)))
    forms = [short, Description(grouped(objects, ()))]
    for properties in ((), ("colour",)):
        phrases = grouped(objects, properties)
        if len(phrases) == len(objects) == 2:
            i = rng.randrange(2)
            relation = true_relation(objects[i], objects[1 - i], rng)
            forms.append(Description((phrases[i], phrases[1 - i]), ((0, relation, 1),)))
    placed = Description(grouped(objects, ("colour", "size", "place")))
    forms.append(placed)
    relations: tuple[tuple[int, str, int], ...] = ()
    if len(objects) > 1 and len(short.phrases) == len(objects):
        i, j = rng.sample(range(len(objects)), 2)
        relations = ((i, true_relation(objects[i], objects[j], rng), j),)
    forms.append(dataclasses.replace(placed, relations=relations, background=scene.background))
    return tuple(dict.fromkeys(describe(form) for form in forms))


def thought(scene: Scene) -> str:
    """The plan before drawing: the number of objects, each with its look and place, the ground."""
    count = len(scene.objects)
    lines = [f"{NUMBERS[count]} object{'s' if count > 1 else ''}"]
    for item in reading_order(scene.objects):
        look = (item.shape, item.letter, item.colour, item.size, item.place)
        lines.append(phrase_text(Phrase(1, *look)))
    return ". ".join([*lines, f"{scene.background} background"]) + "."
