"""Captions of at least 60 words that describe everything: the shape, colour, size and place of
every object, and the ground. Their parser reads what a model wrote sentence by sentence, so that a
caption with faults still gets a score.

The forms are fixed, so that tiny models can learn them.
"""

from __future__ import annotations

import dataclasses
import re

from data_pipelines.scenes.agreement import Account, Agreement, account_of, agreement
from data_pipelines.scenes.facts import Phrase
from data_pipelines.scenes.language import NUMBERS, PLACE_WORDS, noun, reading_order
from data_pipelines.scenes.scene import (
    BACKGROUNDS,
    COLOURS,
    LETTER,
    LETTERS,
    PLACES,
    PLAIN_SHAPES,
    RADII,
    Scene,
)

ORDINALS = ("first", "second", "third", "fourth")


def long_caption(scene: Scene) -> str:
    """The one long caption of a scene: its objects in reading order."""
    count = len(scene.objects)
    what = f"{NUMBERS[count]} object{'s' if count > 1 else ''}"
    sentences = [
        f"this is a flat picture with exactly {what} in it, drawn on a plain {scene.background} "
        "background"
    ]
    for ordinal, item in zip(ORDINALS, reading_order(scene.objects), strict=False):
        name = noun(item.shape, item.letter)
        article = "an" if name[0] in "aeiou" else "a"
        sentences += [
            f"the {ordinal} object is {article} {name}, and its colour is {item.colour} all over",
            f"in size it is {item.size}, measured against the whole picture, and its place is "
            f"{PLACE_WORDS[item.place]} of the picture",
        ]
    sentences.append(
        "nothing else is to be seen in this picture, and the ground around is "
        f"{scene.background} everywhere"
    )
    return ". ".join(sentences) + "."


@dataclasses.dataclass(frozen=True)
class Claims:
    """What a long caption says.

    Attributes:
      account: its objects, each as far as it is described, and the ground.
      count: the number of objects that the first sentence states; None: it does not say.
      faults: sentences that match no form, are in the wrong place, or contradict an earlier one
        about the ground.
    """

    account: Account
    count: int | None
    faults: int


def _one_of(names: object) -> str:
    return "|".join(sorted(names, key=len, reverse=True))


_GROUND = rf"(?P<ground>{_one_of(BACKGROUNDS)})"
_WHOLE = re.compile(
    rf"this is a flat picture with exactly (?P<count>{_one_of(NUMBERS[1:])}) objects? in it, "
    rf"drawn on a plain {_GROUND} background"
)
_LOOK = re.compile(
    rf"the (?P<ordinal>{_one_of(ORDINALS)}) object is an? "
    rf"(?P<shape>{_one_of((*PLAIN_SHAPES, LETTER))})(?: (?P<letter>{_one_of(LETTERS)}))?, "
    rf"and its colour is (?P<colour>{_one_of(COLOURS)}) all over",
    re.IGNORECASE,
)
_STAND = re.compile(
    rf"in size it is (?P<size>{_one_of(RADII)}), measured against the whole picture, and its place "
    rf"is (?:in|on|at) the (?P<place>{_one_of(PLACES)}) of the picture"
)
_END = re.compile(
    rf"nothing else is to be seen in this picture, and the ground around is {_GROUND} everywhere"
)


def read_long(text: str) -> Claims:
    """Reads what a long caption claims; any text may be given."""
    objects: list[Phrase] = []
    count, background, faults, open_object = None, "", 0, False
    for sentence in filter(None, re.split(r"\.\s*", text.strip())):
        if found := _LOOK.fullmatch(sentence):
            faults += ORDINALS.index(found["ordinal"].lower()) != len(objects)
            letter = (found["letter"] or "").upper()
            faults += bool(letter) != (found["shape"].lower() == LETTER)
            objects.append(Phrase(1, found["shape"].lower(), letter, found["colour"].lower()))
            open_object = True
            continue
        if (found := _STAND.fullmatch(sentence)) and open_object:
            objects[-1] = dataclasses.replace(objects[-1], **found.groupdict())
        elif found := _WHOLE.fullmatch(sentence) or _END.fullmatch(sentence):
            faults += background not in ("", found["ground"])
            background = background or found["ground"]
            if "count" in found.groupdict():
                faults += count is not None
                count = NUMBERS.index(found["count"])
        else:
            faults += 1
        open_object = False
    return Claims(Account(tuple(objects), background), count, faults)


def score_long(text: str, truth: Account) -> Agreement:
    """How well a long caption agrees with what a picture shows; its faults, and a wrong count, also
    count as invented facts."""
    claims = read_long(text)
    found = agreement(truth, claims.account)
    wrong = claims.faults + (claims.count not in (None, len(truth.objects)))
    return dataclasses.replace(found, invented=found.invented + wrong)


def truth_of(scene: Scene) -> Account:
    return account_of(scene.objects, scene.background)
