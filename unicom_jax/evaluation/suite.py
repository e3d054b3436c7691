"""What the suites share: settings, results, batches and balanced selection."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from unicom_jax.evaluation.answers import RULES
from unicom_jax.evaluation.records import Record
from unicom_jax.evaluation.scores import Score

Item = TypeVar("Item")
EXAMPLES_A_QUESTION, EXAMPLES_AN_EDIT = 6, 2
FEWEST = 3  # pictures needed to measure a distance with an interval
WATCHING = ("watched", "scored")  # keys of `sample` that only `while_training` reads


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How much is evaluated and how the model samples.

    Attributes:
      image_size: height and width in pixels of Scenes pictures if no other sizes are given.
      pictures: reconstructed and captioned pictures; also the size of both sets of features for the
        kernel distance.
      prompts: drawn prompts per category.
      questions: questions per kind.
      edits: edits in total, spread evenly over their kinds.
      shown: records kept per list and kind, with their pictures on disk.
      batch_size: samples that a model is given at once; affects only speed and memory.
      steps, guidance, guidance_interval, sampler, grid: for drawing and editing.
      edit_start: for editing.
      think: whether the model plans in words before it draws.
      max_tokens: the most tokens of an answer or caption.
      best_of: drawings of each prompt or description, of which the judge chooses the best.
      answer_rule: how answers are compared with the true ones, a key of `answers.RULES`.
      seed: for sampling.
    """

    image_size: int = 64
    pictures: int = 128
    prompts: int = 32
    questions: int = 64
    edits: int = 64
    shown: int = 12
    batch_size: int = 64
    steps: int = 20
    guidance: float = 3.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    sampler: str = "euler"
    grid: str = "even"
    edit_start: float = 0.0
    think: bool = False
    max_tokens: int = 64
    best_of: int = 1
    answer_rule: str = "exact"
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"image_size": 16, "batch_size": 1, "steps": 1, "max_tokens": 1, "best_of": 1}
        counts = ("pictures", "prompts", "questions", "edits", "shown")
        for name, low in (least | dict.fromkeys(counts, 0)).items():
            if getattr(self, name) < low:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}; give at least {low}")
        if 0 < self.pictures < FEWEST:
            raise ValueError(
                f"evaluation.pictures is {self.pictures}: too few for intervals; "
                f"give 0 or at least {FEWEST}"
            )
        if self.answer_rule not in RULES:
            raise ValueError(
                f"evaluation.answer_rule {self.answer_rule!r} is unknown; choose one of "
                f"{', '.join(RULES)}"
            )

    @property
    def examples(self) -> int:
        """Examples to search: not every one has all kinds of questions and edits."""
        return max(
            self.pictures, EXAMPLES_A_QUESTION * self.questions, EXAMPLES_AN_EDIT * self.edits
        )

    @property
    def drawing(self) -> dict[str, Any]:
        """How pictures are drawn, as arguments of `UnifiedModel.draw`."""
        names = ("steps", "guidance", "guidance_interval", "sampler", "grid")
        return {name: getattr(self, name) for name in names}

    @property
    def editing(self) -> dict[str, Any]:
        """How pictures are edited, as arguments of `UnifiedModel.edit`."""
        return {**self.drawing, "edit_start": self.edit_start}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> EvaluationConfig:
        """From a run's configuration: `evaluation`, `sample`, `data.image_size` and `seed`.

        Raises ValueError for an unknown key of `evaluation` or `sample`.
        """
        values = dict(config["evaluation"]) | dict(config["sample"])
        values = {key: value for key, value in values.items() if key not in WATCHING}
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise ValueError(f"evaluation has no key {key!r}; {hint}")
        common = {"image_size": config["data"]["image_size"], "seed": config["seed"]}
        return cls(**(common | values))


@dataclasses.dataclass(frozen=True)
class Makes:
    """The scores that a suite makes.

    Attributes:
      names: a regular expression that matches the whole name of each of them, and of no score of
        another suite.
      count: the key of `EvaluationConfig` that says on how many samples they are computed.
    """

    names: str
    count: str


@dataclasses.dataclass(frozen=True)
class SuiteResult:
    """Scores and per-sample records of one suite."""

    scores: list[Score]
    records: list[Record]


Progress = Callable[[int], None]  # called with the number of newly finished samples


def silent(_: int) -> None:
    """Progress that is not shown."""


def in_batches(
    items: Sequence[Item], size: int, progress: Progress = silent, *, first: int = 0
) -> Iterator[tuple[int, list[Item]]]:
    """Yields (place of the first item, up to `size` items); reports each batch after its use.

    Items are read lazily. Models derive their noise from the places, so a sample's noise does not
    depend on `size`.

    Args:
      first: place of the first item.
    """
    for start in range(0, len(items), size):
        batch = [items[index] for index in range(start, min(start + size, len(items)))]
        yield first + start, batch
        progress(len(batch))


def in_batches_of_one_shape(
    items: Sequence[Item],
    shapes: Sequence[tuple[int, int]],
    size: int,
    progress: Progress = silent,
) -> Iterator[tuple[int, tuple[int, int], list[tuple[int, Item]]]]:
    """As `in_batches`, but yields (place, shape, numbered items), all items of one shape."""
    first = 0
    for shape in sorted(set(shapes)):
        chosen = [index for index, own in enumerate(shapes) if own == shape]
        for place, indices in in_batches(chosen, size, progress, first=first):
            yield place, shape, [(index, items[index]) for index in indices]
        first += len(chosen)


def balanced(items: Sequence[Item], kind: Callable[[Item], str], count: int) -> list[Item]:
    """Up to `count` items, taken in turn from every kind, each kind in its own order."""
    missing = object()
    turns = itertools.zip_longest(*by_kind(items, kind).values(), fillvalue=missing)
    taken = (item for turn in turns for item in turn if item is not missing)
    return list(itertools.islice(taken, count))


def first_of_each(items: Sequence[Item], kind: Callable[[Item], str], count: int) -> list[Item]:
    """The first `count` items of every kind, kind after kind."""
    return [item for group in by_kind(items, kind).values() for item in group[:count]]


def by_kind(items: Sequence[Item], kind: Callable[[Item], str]) -> dict[str, list[Item]]:
    """Items grouped by kind, kinds in order of first appearance."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(kind(item), []).append(item)
    return groups
