"""What the suites share: their settings, their result, batches and balanced choices."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from unicom_jax.evaluation.records import Record
from unicom_jax.evaluation.scores import Score

Item = TypeVar("Item")
EXAMPLES_A_QUESTION, EXAMPLES_AN_EDIT = 6, 2


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How much is evaluated and how the model samples.

    Attributes:
      image_size: height and width in pixels of Scenes pictures and of what is drawn.
      pictures: reconstructed pictures, also the size of both feature sets of the Fréchet distance,
        and captioned pictures.
      prompts: drawn prompts a category.
      questions: questions a kind.
      edits: edits in all, spread evenly over their kinds.
      shown: records kept per list and kind, with their pictures on disk.
      batch_size: samples a generator call.
      steps, guidance, guidance_interval, sampler: of drawing and editing.
      think: whether the model plans in words before it draws.
      max_tokens: of an answer or caption.
      seed: of the sampler.
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
    think: bool = False
    max_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"image_size": 16, "batch_size": 1, "steps": 1, "max_tokens": 1}
        counts = ("pictures", "prompts", "questions", "edits", "shown")
        for name, low in (least | dict.fromkeys(counts, 0)).items():
            if getattr(self, name) < low:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}; give at least {low}")
        if self.pictures in (1, 2):
            raise ValueError(
                f"evaluation.pictures is {self.pictures}: too few for intervals; "
                "give 0 or at least 3"
            )

    @property
    def examples(self) -> int:
        """Examples to look through: not each has every kind of question and edit."""
        return max(
            self.pictures, EXAMPLES_A_QUESTION * self.questions, EXAMPLES_AN_EDIT * self.edits
        )

    @property
    def drawing(self) -> dict[str, Any]:
        """How pictures are drawn, as arguments of `UnifiedModel.draw` and `edit`."""
        names = ("steps", "guidance", "guidance_interval", "sampler")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> EvaluationConfig:
        """From a run's configuration: `evaluation`, `sample`, `data.image_size` and `seed`.

        Raises ValueError for a key of `evaluation` or `sample` that has no meaning here.
        """
        values = dict(config["evaluation"]) | dict(config["sample"])
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise ValueError(f"evaluation has no key {key!r}; {hint}")
        common = {"image_size": config["data"]["image_size"], "seed": config["seed"]}
        return cls(**(common | values))


@dataclasses.dataclass(frozen=True)
class SuiteResult:
    """Scores and per-sample records of one suite."""

    scores: list[Score]
    records: list[Record]


Progress = Callable[[int], None]  # told how many more samples are done


def silent(_: int) -> None:
    """Progress that nobody watches."""


def in_batches(
    items: Sequence[Item], size: int, progress: Progress = silent
) -> Iterator[tuple[int, Sequence[Item]]]:
    """Yields (index of the first, up to `size` items); reports each batch once it was used."""
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        yield start, batch
        progress(len(batch))


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
