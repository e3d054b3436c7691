"""Scores pictures, captions and edits on Scenes: GenEval's six categories, and exact comparison
where the truth is known.

The categories are those of GenEval (Ghosh et al. 2023, arXiv:2310.11513), with our exact judge
instead of an object detector.
We are stricter in one respect: the picture must contain nothing but what the prompt names, because
captions here are complete. Counting asks for two objects up to as many as the configuration's
scenes have, at most four: numbers that no training picture shows would measure extrapolation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.scenes.edits import SceneEdit
from data_pipelines.scenes.facts import Description, check
from data_pipelines.scenes.judge import Reading, read_scene
from data_pipelines.scenes.language import (
    CaptionError,
    describe,
    grouped,
    parse,
    reading_order,
    true_relation,
)
from data_pipelines.scenes.scene import Scene, SceneConfig, SceneObject, random_stream, sample_scene

CATEGORIES = ("single", "two", "counting", "colours", "position", "binding")
# For each category: relative frequencies of 1, 2, ... objects, whether all are alike, and whether
# colours are named.
_FORMS = {
    "single": ((1.0,), False, False),
    "two": ((0.0, 1.0), False, False),
    "counting": ((0.0, 1.0, 1.0, 1.0), True, False),
    "colours": ((1.0,), False, True),
    "position": ((0.0, 1.0), False, False),
    "binding": ((0.0, 1.0), False, True),
}
MOVE_TOLERANCE = 0.06  # of an axis (a place spans 0.26): how far an untouched object may stray
GROUND_TOLERANCE = 12.0  # of 255: mean absolute difference of the ground


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A caption to draw, its category, and its meaning."""

    text: str
    category: str
    requirement: Description


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a picture or text is right; `reason` names the first fault, "" if there is none."""

    correct: bool
    reason: str


def cases(
    category: str, count: int, seed: int = 0, config: SceneConfig | None = None
) -> list[tuple[Scene, Prompt]]:
    """Prompts of a category, each with a scene that satisfies it; a pure function of its arguments.

    Args:
      category: one of CATEGORIES.
      count: how many.
      seed: selects the random stream.
      config: palette, shapes and picture sizes; its object counts are replaced by the category's,
        of which counting asks only for those up to its largest one (but for two at least).

    Raises:
      ValueError: an unknown category, or a configuration with too few shapes or colours for it.
    """
    if category not in _FORMS:
        raise ValueError(f"category {category!r}; choose from {', '.join(CATEGORIES)}")
    config = config or SceneConfig()
    weights, alike, colours = _FORMS[category]
    if category == "counting":
        weights = weights[: max(2, _largest_count(config))]
    if len(weights) == 2 and not alike and min(len(config.shapes), len(config.colours)) < 2:
        raise ValueError(f"category {category!r} needs two shapes and two colours in SceneConfig")
    config = dataclasses.replace(
        config, object_weights=weights, alike_share=float(alike), distinct_share=float(not alike)
    )
    return [_case(category, seed, index, colours, config) for index in range(count)]


def _largest_count(config: SceneConfig) -> int:
    """The most objects that a scene of a configuration can have."""
    return max(count for count, weight in enumerate(config.object_weights, 1) if weight > 0)


def _case(
    category: str, seed: int, index: int, colours: bool, config: SceneConfig
) -> tuple[Scene, Prompt]:
    rng = random_stream(seed, index, category)
    scene = sample_scene(config, rng)
    objects = list(reading_order(scene.objects))
    relations: tuple[tuple[int, str, int], ...] = ()
    if category == "position":
        rng.shuffle(objects)
        relations = ((0, true_relation(*objects, rng), 1),)
    phrases = grouped(tuple(objects), ("colour",) if colours else ())
    requirement = Description(phrases, relations)
    return scene, Prompt(describe(requirement), category, requirement)


def prompts(
    category: str, count: int, seed: int = 0, config: SceneConfig | None = None
) -> list[Prompt]:
    """Prompts of a category in the grammar of the captions; see `cases`."""
    return [prompt for _, prompt in cases(category, count, seed, config)]


def verdict(image: np.ndarray, prompt: Prompt) -> Verdict:
    """Whether a picture, (H, W, 3) uint8, shows what the prompt asks for and nothing else."""
    reading = read_scene(image)
    return Verdict(*check(prompt.requirement, reading.objects, reading.background))


def wrong_caption_chance(pairs: Sequence[tuple[Scene, Prompt]]) -> float:
    """How often the next pair's prompt happens to be true of a scene: the score of a model that
    ignores its prompt.

    Computed from the true scenes, without the judge.
    """
    shifted = [prompt for _, prompt in [*pairs[1:], pairs[0]]]
    hits = [
        check(prompt.requirement, scene.objects, scene.background)[0]
        for (scene, _), prompt in zip(pairs, shifted, strict=True)
    ]
    return sum(hits) / len(hits)


def caption_verdict(text: str, scene: Scene, require: Sequence[str] = ("colour",)) -> Verdict:
    """Whether a caption that a model wrote is true and complete.

    Args:
      text: the caption.
      scene: what the picture truly shows.
      require: properties (colour, size, place) that every phrase must name besides the shape.
    """
    try:
        description = parse(text)
    except CaptionError as error:
        return Verdict(False, str(error))
    for phrase in description.phrases:
        missing = [name for name in require if not getattr(phrase, name)]
        if missing:
            return Verdict(False, f"{phrase} has no {missing[0]}")
    return Verdict(*check(description, scene.objects, scene.background))


@dataclasses.dataclass(frozen=True)
class EditVerdict:
    """`reached`: the instruction was carried out; `kept`: everything else is unchanged."""

    reached: bool
    kept: bool
    reason: str

    @property
    def correct(self) -> bool:
        return self.reached and self.kept


def edit_verdict(before: np.ndarray, after: np.ndarray, edit: SceneEdit) -> EditVerdict:
    """Judges an edit.

    Args:
      before: the picture that was edited, (H, W, 3) uint8.
      after: the result, of the same shape.
      edit: what was asked for.

    Raises:
      ValueError: the pictures differ in shape.
    """
    if before.shape != after.shape:
        raise ValueError(f"edit_verdict: shapes {before.shape} and {after.shape} must be equal")
    reading = read_scene(after)
    touched = [item for item in edit.after.objects if item not in edit.before.objects]
    others = [item for item in edit.after.objects if item in edit.before.objects]
    free = list(reading.objects)
    not_kept = _take(others, free, MOVE_TOLERANCE)
    not_done = _take(touched, free, 2 * MOVE_TOLERANCE)
    stale = [item for item in free if _is_old(item, edit)]
    # One wrong attempt for each object that is not done does not count as another fault.
    surplus = len(free) - len(stale) - len(not_done)
    ground = _ground_change(before, after, reading)
    faults = [f"{_named(item)} is missing" for item in [*not_done, *not_kept]]
    faults += [f"{_named(item)} is still there" for item in stale]
    faults += [f"{surplus} more objects than there should be"] if surplus > 0 else []
    faults += [f"ground changed by {ground:.0f}"] if ground > GROUND_TOLERANCE else []
    return EditVerdict(
        reached=not not_done and not stale,
        kept=not not_kept and surplus <= 0 and ground <= GROUND_TOLERANCE,
        reason=faults[0] if faults else "",
    )


def _named(item: SceneObject) -> str:
    return " ".join(word for word in (item.size, item.colour, item.shape, item.letter) if word)


def _look(item: SceneObject) -> tuple[str, str, str, str]:
    return item.shape, item.letter, item.colour, item.size


def _is_near(a: SceneObject, b: SceneObject, tolerance: float) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) <= tolerance


def _take(
    wanted: Sequence[SceneObject], free: list[SceneObject], tolerance: float
) -> list[SceneObject]:
    """Removes a match for each wanted object from `free`; returns those that have none."""
    missing = []
    for item in wanted:
        matches = [f for f in free if _look(f) == _look(item) and _is_near(f, item, tolerance)]
        if matches:
            free.remove(matches[0])
        else:
            missing.append(item)
    return missing


def _is_old(item: SceneObject, edit: SceneEdit) -> bool:
    """Whether a leftover is an object, still in its place, that the edit should have changed."""
    old = [edit.before.objects[i] for i in edit.changed]
    return any(_is_near(item, other, 2 * MOVE_TOLERANCE) for other in old)


def _ground_change(before: np.ndarray, after: np.ndarray, reading: Reading) -> float:
    """Mean absolute difference where neither picture has an object."""
    empty = np.ones(before.shape[:2], bool)
    for item in read_scene(before).objects + reading.objects:
        left, top, right, bottom = item.box
        empty[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = False
    if not empty.any():
        return 0.0
    return float(np.abs(before[empty].astype(np.float32) - after[empty]).mean())
