"""Best of several drawings: the one that the judge chooses is scored."""

from __future__ import annotations

import dataclasses
import io
from types import SimpleNamespace

import numpy as np
import pytest
import rich.console

from tests.evaluation.helpers import PerfectModel, colour_of, examples, prompts, square
from tests.evaluation.test_suites import CONFIG, values
from tests.evaluation.test_unified import EXAMPLES, Describing, same_colour
from unicom_jax.evaluation.data import EvaluationData
from unicom_jax.evaluation.generation import evaluate_generation
from unicom_jax.evaluation.run import evaluate
from unicom_jax.evaluation.unified import evaluate_unified

COLOURS = ("red", "green", "blue")


class Guessing(Describing):
    """Draws a square of a colour that depends on the seed alone."""

    def draw(self, prompts, *, seed, **how):
        self.calls.append(("seed", seed))
        return [SimpleNamespace(image=square(COLOURS[seed % 3])) for _ in prompts]


def best_of(count: int):
    return dataclasses.replace(CONFIG, best_of=count)


def seeds(model):
    return {seed for name, seed in model.calls if name == "seed"}


def test_a_prompt_is_correct_if_one_of_its_drawings_is():
    found = {}
    for count in (1, 2, 3):
        model = Guessing()
        result = evaluate_generation(model, prompts(), best_of(count))
        found[count] = values(result)["generation/overall"]
        drawn = [one.prompt for one in result.records if one.correct]
        assert all(colour_of(one.image) in one.prompt for one in result.records if one.correct)
        assert len(drawn) == found[count] * len(prompts()) and len(seeds(model)) == count
    assert found == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1.0})


def test_the_first_of_several_drawings_has_the_noise_of_the_only_one():
    one, three = Guessing(), Guessing()
    for model, count in ((one, 1), (three, 3)):
        evaluate_generation(model, prompts(), best_of(count))
    assert seeds(one) == {CONFIG.seed} < seeds(three)


def test_a_description_is_worth_its_best_drawing_and_the_record_shows_that_one():
    def run(count, **how):
        return evaluate_unified(Guessing(), EXAMPLES, best_of(count), judge=same_colour, **how)

    once, often = run(1), run(3, encoder=PerfectModel())
    assert values(once)["unified/agreement"] == pytest.approx(1 / 3)
    assert values(often)["unified/agreement"] == 1.0 and values(often)["unified/invented"] == 0.0
    assert values(often)["unified/agreement/shuffled"] == 1.0  # chance may choose as well
    for one in often.records:
        assert colour_of(one.drawing) == colour_of(one.original)
        assert one.cosine == pytest.approx(_cosine(one.original, one.drawing))


def _cosine(one, other):
    a, b = PerfectModel().features([one, other])
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_without_a_judge_the_encoder_chooses():
    found = evaluate_unified(Guessing(), EXAMPLES, best_of(3), encoder=PerfectModel())
    assert all(colour_of(one.drawing) == colour_of(one.original) for one in found.records)


def test_drawings_that_nobody_can_judge_are_refused(tmp_path):
    data, quiet = EvaluationData(examples()), rich.console.Console(file=io.StringIO())
    with pytest.raises(ValueError, match="--best-of=2: generations of this data have no exact"):
        evaluate(PerfectModel, None, best_of(2), tmp_path, data=data, console=quiet)
    with pytest.raises(ValueError, match="--best-of=2 does nothing for captions, which draw no"):
        evaluate(PerfectModel, None, best_of(2), tmp_path, data=data, only=("captions",))
    with pytest.raises(ValueError, match="evaluation.best_of is 0; give at least 1"):
        best_of(0)
