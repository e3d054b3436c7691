"""The texts of OpenMoji's drawings: captions, questions and edit pairs, from its annotations.

Many drawings come in variants whose annotations differ in one place: "waving hand: dark skin tone",
"woman climbing", "blue heart". Such a place is a slot (SLOTS); two drawings that agree in all but
one slot are an edit pair with an exact target.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from data_pipelines.examples import Question

DEFAULT_TONE = "yellow"  # skin of the drawings that have no tone
COLOURS = r"red|orange|yellow|green|blue|purple|brown|black|white|pink|grey"
MAX_TAGS = 8
# Not subjects but origins of drawings, so no answer to "Which group?".
ORIGINS = ("extras-openmoji", "extras-unicode", "component")


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One row of the table; `tags` without duplicates."""

    hexcode: str
    annotation: str
    tags: tuple[str, ...]
    group: str
    subgroup: str


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place in annotations: `split` gives (rest, value), with value "" if the place is absent."""

    split: Callable[[str], tuple[str, str]]
    instruction: str  # with {old} and {new}
    empty: str | None = None  # the value of a drawing without one, if that is a variant too


@dataclasses.dataclass(frozen=True)
class EditPair:
    """An edit whose target is the drawing `hexcode`."""

    instruction: str
    hexcode: str
    kind: str
    caption: str


def split_tone(annotation: str) -> tuple[str, str]:
    """("hug: woman, dark skin tone, light skin tone") -> ("hug: woman", "dark and light")."""
    parts = re.split(r"(: |, )", annotation)  # text, separator, text, ...
    rest, tones = parts[0], []
    for separator, text in zip(parts[1::2], parts[2::2], strict=True):
        if text.endswith(" skin tone"):
            tones.append(text.removesuffix(" skin tone"))
        else:
            # What follows a dropped tone keeps the colon: "man: dark skin tone, red hair".
            rest += (": " if tones and ": " not in rest else separator) + text
    return rest, " and ".join(tones)


def split_word(pattern: str) -> Callable[[str], tuple[str, str]]:
    """A splitter that takes the first word matching `pattern` out and leaves "*" in its place."""
    compiled = re.compile(rf"(?<![\w-])({pattern})(?![\w-])")

    def split(annotation: str) -> tuple[str, str]:
        match = compiled.search(annotation)
        return (compiled.sub("*", annotation, count=1), match[1]) if match else (annotation, "")

    return split


SLOTS = {
    "skin_tone": Slot(split_tone, "make the skin tone {new}", DEFAULT_TONE),
    "person": Slot(split_word("^man|^woman|^person"), "turn the {old} into a {new}"),
    "people": Slot(split_word("^men|^women|^people"), "turn the {old} into {new}"),
    "recolour": Slot(split_word(COLOURS), "change {old} to {new}"),
}


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """All drawings, with what can be known about one only by comparison with the others.

    `pictures`: hexcode -> encoded picture; equal bytes mean that two drawings look the same.
    """

    drawings: tuple[Drawing, ...]
    pictures: Mapping[str, bytes]

    @functools.cached_property
    def variants(self) -> dict[tuple[str, str], dict[str, Drawing]]:
        """(slot, rest of the annotation) -> value -> drawing; the first one among duplicates.

        Variants that look the same ("man walking", "person walking") are left out: the picture
        does not show the value.
        """
        found: dict[tuple[str, str], dict[str, Drawing]] = {}
        for drawing in self.drawings:
            for name, slot in SLOTS.items():
                rest, value = _slot_value(slot, drawing.annotation)
                if value:
                    found.setdefault((name, rest), {}).setdefault(value, drawing)
        return {key: self._distinct(values) for key, values in found.items()}

    def _distinct(self, values: dict[str, Drawing]) -> dict[str, Drawing]:
        looks = collections.Counter(self.pictures[d.hexcode] for d in values.values())
        return {v: d for v, d in values.items() if looks[self.pictures[d.hexcode]] == 1}

    @functools.cached_property
    def names(self) -> dict[str, dict[str, str]]:
        """Group -> name of what a drawing shows -> its family, for wrong answers."""
        found: dict[str, dict[str, str]] = {}
        for drawing in self.drawings:
            found.setdefault(drawing.group, {})[subject(drawing)] = family(drawing)
        return found

    def siblings(self, drawing: Drawing, slot: str) -> tuple[str, dict[str, Drawing]]:
        """The drawing's value in a slot and all values of its variants; fewer than two: none."""
        rest, value = _slot_value(SLOTS[slot], drawing.annotation)
        values = self.variants.get((slot, rest), {})
        return value, values if values.get(value) is drawing and len(values) > 1 else {}

    def captions(self, drawing: Drawing) -> tuple[str, str]:
        """The annotation, and a caption with group and tags; a variant has its base's tags."""
        base = self.siblings(drawing, "skin_tone")[1].get(DEFAULT_TONE, drawing)
        places = [] if drawing.group in ORIGINS else [words(drawing.group, " and ")]
        places.append(words(drawing.subgroup))
        long = f"{caption(drawing)}; a drawing from {', '.join(places)}"
        tags = (drawing.tags or base.tags)[:MAX_TAGS]
        return caption(drawing), f"{long}; about {', '.join(tags)}" if tags else long

    def questions(self, drawing: Drawing) -> tuple[Question, ...]:
        """Questions about name, group, kind and, if present, skin tone and colour, and two yes/no
        questions."""
        name = subject(drawing)
        found = [
            Question("What is this?", name, "name"),
            Question("What kind of drawing is this?", words(drawing.subgroup), "subgroup"),
        ]
        if drawing.group not in ORIGINS:
            group = words(drawing.group, " and ")
            found.append(Question("Which group does this belong to?", group, "group"))
        for slot, text in (("skin_tone", "What is the skin tone?"), ("recolour", "Which colour?")):
            value, values = self.siblings(drawing, slot)
            if values:
                found.append(Question(text, value, slot))
        # From the same group, which is hard; not from the same family, which might be true.
        names = self.names[drawing.group].items()
        others = [other for other, relatives in names if relatives != family(drawing)]
        if others:
            wrong = others[stable_hash(drawing.hexcode) % len(others)]
            found.append(Question(f"Does this show: {name}?", "yes", "yes_no"))
            found.append(Question(f"Does this show: {wrong}?", "no", "yes_no"))
        return tuple(found)

    def edits(self, drawing: Drawing, limit: int) -> tuple[EditPair, ...]:
        """At most `limit` edit pairs that start from the drawing, chosen by hash."""
        found = []
        for name, slot in SLOTS.items():
            old, values = self.siblings(drawing, name)
            for new, target in values.items():
                if new != old:
                    instruction = slot.instruction.format(old=old, new=new)
                    found.append(EditPair(instruction, target.hexcode, name, caption(target)))
        found.sort(key=lambda pair: stable_hash(f"{drawing.hexcode} {pair.instruction}"))
        return tuple(found[:limit])


def read_drawings(rows: Iterable[Mapping[str, Any]]) -> list[Drawing]:
    """Rows of data/openmoji.json, in their order.

    Raises:
      KeyError: a row lacks a column.
    """
    drawings = []
    for row in rows:
        tags = [tag.strip() for tag in f"{row['tags']},{row['openmoji_tags']}".split(",")]
        drawings.append(
            Drawing(
                hexcode=row["hexcode"],
                annotation=row["annotation"].strip(),
                tags=tuple(dict.fromkeys(tag for tag in tags if tag)),
                group=row["group"],
                subgroup=row["subgroups"],
            )
        )
    return drawings


def make_catalogue(drawings: Iterable[Drawing], pictures: Mapping[str, bytes]) -> Catalogue:
    """Leave out drawings that differ from an earlier one only in the name of the skin tone.

    OpenMoji has such cases: all tones of "people wrestling" are the same picture.
    """
    first: dict[tuple[str, bytes], Drawing] = {}
    for drawing in drawings:
        first.setdefault((subject(drawing), pictures[drawing.hexcode]), drawing)
    return Catalogue(tuple(first.values()), pictures)


def family(drawing: Drawing) -> str:
    """The annotation without its slots: drawings of one family are variants of each other."""
    rest = drawing.annotation
    for slot in SLOTS.values():
        rest = slot.split(rest)[0]
    return rest


def subject(drawing: Drawing) -> str:
    """What is shown, regardless of its skin tone."""
    return _plain(split_tone(drawing.annotation)[0])


def caption(drawing: Drawing) -> str:
    """ "hug: woman, dark skin tone, light skin tone" -> "hug, woman, dark and light skin tones"."""
    tone = split_tone(drawing.annotation)[1]
    plural = "s" if " and " in tone else ""
    return f"{subject(drawing)}, {tone} skin tone{plural}" if tone else subject(drawing)


def words(name: str, joint: str = " ") -> str:
    """ "animals-nature" -> "animals nature", or with another joint."""
    return name.replace("-", joint)


def stable_hash(text: str) -> int:
    """The same number in every process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _plain(annotation: str) -> str:
    if annotation.startswith("flag: "):
        return f"flag of {annotation.removeprefix('flag: ')}"
    return annotation.replace(": ", ", ")


def _slot_value(slot: Slot, annotation: str) -> tuple[str, str]:
    rest, value = slot.split(annotation)
    return rest, value or slot.empty or ""
