"""Suite: edits by instruction. The target must be reached *and* everything else kept unchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.examples import Edit, Example
from unicom_jax.core.picture import Picture
from unicom_jax.evaluation.protocol import UnifiedModel
from unicom_jax.evaluation.records import Editing, Log
from unicom_jax.evaluation.scores import Score, proportion
from unicom_jax.evaluation.suite import (
    EvaluationConfig,
    Makes,
    Progress,
    SuiteResult,
    by_kind,
    in_batches,
    silent,
)


@dataclasses.dataclass(frozen=True)
class EditVerdict:
    """Whether an edit was carried out, whether the rest was kept, and why not ("" if both)."""

    reached: bool
    unchanged: bool
    reason: str = ""

    @property
    def success(self) -> bool:
        return self.reached and self.unchanged


# (example, edit with its target, picture before, picture after; all of one size) -> verdict
EditJudge = Callable[[Example, Edit, Picture, Picture], EditVerdict]

# Kinds are those of the data.
EDITING = Makes(r"editing/(reached|unchanged|success(/.+)?)", "edits")
CHANGED = 16  # levels of 255 by which the true edit must change a pixel for it to count as changed
KEPT = 12.0  # the largest mean absolute error of the rest of the picture, in levels of 255
NEARER = 0.5  # largest remaining share of the squared distance to the target in the edited area


def judge_pixels(example: Example, edit: Edit, before: Picture, after: Picture) -> EditVerdict:
    """A verdict from pixels alone, for data without a parser of pictures. All (H, W, 3) uint8.

    Reached: where the true edit changes the picture, at most half of the squared distance to the
    target is left. Unchanged: elsewhere the mean absolute error is at most 12 levels of 255.
    """
    del example
    source, result, target = (np.asarray(x, np.float64) for x in (before, after, edit.target))
    region = np.max(np.abs(target - source), axis=-1) >= CHANGED
    if not region.any():
        return EditVerdict(True, True)
    left = float(np.mean(np.square(result - target)[region]))
    whole = float(np.mean(np.square(source - target)[region]))
    drift = float(np.mean(np.abs(result - source)[~region])) if not region.all() else 0.0
    reached, unchanged = left <= NEARER * whole, drift <= KEPT
    reasons = [] if reached else [f"{left / whole:.0%} of the change is still to be made"]
    reasons += [] if unchanged else [f"the rest moved by {drift:.0f} of 255 levels"]
    return EditVerdict(reached, unchanged, "; ".join(reasons))


def evaluate_editing(
    model: UnifiedModel,
    edits: Sequence[tuple[Example, Edit]],
    config: EvaluationConfig,
    *,
    judge: EditJudge = judge_pixels,
    progress: Progress = silent,
) -> SuiteResult:
    """Success, target reached, rest unchanged, and success by kind.

    The edits of one picture are a cluster. Chance is an editor that returns the picture unchanged:
    everything is kept, little is reached.
    """
    records: Log[Editing] = Log(config.shown)
    idle: Log[Editing] = Log(0)
    for first, batch in in_batches(edits, config.batch_size, progress):
        edited = model.edit(
            [example.image for example, _ in batch],
            [edit.instruction for _, edit in batch],
            **config.editing,
            seed=config.seed,
            first=first,
        )
        for (example, edit), after in zip(batch, edited, strict=True):
            before = model.prepared(example.image)
            edit = dataclasses.replace(edit, target=model.prepared(edit.target))
            records.append(_record(example, edit, before, after, judge))
            idle.append(_record(example, edit, before, before, judge))
    return SuiteResult(_scores(records, idle) if records else [], records)


def _record(
    example: Example, edit: Edit, before: Picture, after: Picture, judge: EditJudge
) -> Editing:
    if after.shape == edit.target.shape == before.shape:
        verdict = judge(example, edit, before, after)
    else:
        sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (after, edit.target)]
        verdict = EditVerdict(False, False, f"size {sizes[0]}, not {sizes[1]}")
    return Editing(
        key=example.key,
        kind=edit.kind,
        instruction=edit.instruction,
        before=before,
        after=after,
        target=edit.target,
        success=verdict.success,
        reached=verdict.reached,
        unchanged=verdict.unchanged,
        reason=verdict.reason,
    )


def _scores(records: Sequence[Editing], idle: Sequence[Editing]) -> list[Score]:
    names = ("success", "reached", "unchanged")
    scores = [_score(f"editing/{name}", records, idle, name) for name in names]
    blind = by_kind(idle, lambda record: record.kind)
    for kind, group in sorted(by_kind(records, lambda record: record.kind).items()):
        scores.append(_score(f"editing/success/{kind}", group, blind[kind], "success"))
    return scores


def _score(name: str, records: Sequence[Editing], idle: Sequence[Editing], quantity: str) -> Score:
    outcomes, blind = ([getattr(r, quantity) for r in rows] for rows in (records, idle))
    return proportion(name, outcomes, sum(blind) / len(blind), [r.key for r in records])
