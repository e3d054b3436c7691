"""`experiments/quickstart.py`: what its scores are compared with."""

from __future__ import annotations

import collections

from experiments import quickstart
from unicom_jax.evaluation.command import data_of
from unicom_jax.evaluation.suite import EvaluationConfig, balanced


def test_scores_of_yes_or_no_questions_and_of_each_kind_of_edit_have_enough_samples():
    config = quickstart.get_config()
    settings = EvaluationConfig.of(config)
    answers: list[str] = []
    edits: list[str] = []
    for example in data_of(config, settings).examples:
        answers += [one.answer for one in example.questions if one.kind == "yesno"]
        edits += [one.kind for one in example.edits]
    # Always giving one answer is right for hardly more than half of the questions.
    asked = collections.Counter(answers[: settings.questions])
    assert asked.total() == 256 and max(asked.values()) / 256 < 0.55
    kinds = collections.Counter(balanced(edits, str, settings.edits))
    assert len(kinds) == 5 and set(kinds.values()) == {32}
