"""How well two accounts of one picture agree, fact by fact: kept, lost, invented.

An account consists of phrases, one per object, and the ground. It may be the truth, a judge's
reading of a picture, or what a caption claims.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.scenes.facts import Description, Phrase
from data_pipelines.scenes.judge import read_scene
from data_pipelines.scenes.language import CaptionError, parse
from data_pipelines.scenes.scene import SceneObject


@dataclasses.dataclass(frozen=True)
class Account:
    """Objects and the name of the ground; a property or ground that is not given is ""."""

    objects: tuple[Phrase, ...]
    background: str = ""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Numbers of facts.

    Attributes:
      kept: true facts that the account has.
      lost: true facts that it lacks or has wrong.
      invented: facts of the account that are wrong, or about objects that do not exist.
    """

    kept: int
    lost: int
    invented: int

    @property
    def completeness(self) -> float:
        """Share of the true facts that are kept."""
        return self.kept / max(self.kept + self.lost, 1)

    @property
    def wrong(self) -> float:
        """Share of the account's facts that are invented."""
        return self.invented / max(self.kept + self.invented, 1)

    @property
    def score(self) -> float:
        """Kept over kept, lost and invented, in [0, 1]: 1 only if nothing is lost or invented."""
        return self.kept / max(self.kept + self.lost + self.invented, 1)


def account_of(objects: Sequence[SceneObject], background: str) -> Account:
    """The account of objects whose properties are all known."""
    phrases = (
        Phrase(1, item.shape, item.letter, item.colour, item.size, item.place) for item in objects
    )
    return Account(tuple(phrases), background)


def told_by(description: Description) -> Account:
    """What a description claims of single objects and the ground; relations are left out."""
    phrases = (
        dataclasses.replace(phrase, count=1)
        for phrase in description.phrases
        for _ in range(phrase.count)
    )
    return Account(tuple(phrases), description.background)


def seen_in(picture: np.ndarray) -> Account:
    """What the exact judge reads in a picture (H, W, 3) uint8."""
    reading = read_scene(picture)
    return account_of(reading.objects, reading.background)


def agreement(truth: Account, told: Account) -> Agreement:
    """Compares an account with the truth.

    Its objects are matched with the true ones, at most one to one, so that the most facts are kept.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import for every command

    alike = np.array(
        [[_alike(true, claimed) for claimed in told.objects] for true in truth.objects], int
    ).reshape(len(truth.objects), len(told.objects))
    matched = alike[linear_sum_assignment(alike, maximize=True)].sum()
    ground = int(truth.background != "" and truth.background == told.background)
    true_facts, told_facts = (
        sum(map(_facts, one.objects)) + bool(one.background) for one in (truth, told)
    )
    kept = int(matched) + ground
    return Agreement(kept, true_facts - kept, told_facts - kept)


def score_caption(text: str, truth: Account) -> Agreement:
    """How well a caption in the grammar of Scenes agrees with what a picture shows; of a text that
    does not follow the grammar, all facts are lost."""
    try:
        claimed = told_by(parse(text))
    except CaptionError:
        claimed = Account(())
    return agreement(truth, claimed)


def _properties(phrase: Phrase) -> list[str]:
    named = (f"{phrase.shape} {phrase.letter}".strip(), phrase.colour, phrase.size, phrase.place)
    return list(named)


def _alike(true: Phrase, claimed: Phrase) -> int:
    pairs = zip(_properties(true), _properties(claimed), strict=True)
    return sum(a == b and a != "" for a, b in pairs)


def _facts(phrase: Phrase) -> int:
    return sum(name != "" for name in _properties(phrase))
