"""A whole evaluation: files, counts, and the exact judge of Scenes on perfect answers."""

from __future__ import annotations

import collections
import dataclasses
import io
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import rich.console
from PIL import Image

from data_pipelines.scenes import geneval
from tests.evaluation.helpers import COLOURS, SIDE, BlindModel, PerfectModel, examples, prompts
from unicom_jax.evaluation.data import EvaluationData
from unicom_jax.evaluation.records import read_outcomes, read_records
from unicom_jax.evaluation.report import write_report
from unicom_jax.evaluation.run import SUITES, UNIFIED, evaluate, suite_of
from unicom_jax.evaluation.scenes import scenes_data
from unicom_jax.evaluation.scores import read_about, read_scores
from unicom_jax.evaluation.suite import EvaluationConfig

CONFIG = EvaluationConfig(
    image_size=64, pictures=6, prompts=4, questions=3, edits=6, shown=2, batch_size=8
)
PARTS = ("semantics", "whole")


class Oracle(BlindModel):
    """Knows the held-out scenes by heart."""

    def __init__(self, data: EvaluationData) -> None:
        self.drawings = {prompt.text: prompt.reference() for prompt in data.prompts}
        self.by_image = {example.image.tobytes(): example for example in data.examples}

    def _known(self, images):
        return [self.by_image[image.tobytes()] for image in images]

    def answer(self, images, questions, **options):
        return [
            next(q.answer for q in example.questions if q.question == question)
            for example, question in zip(self._known(images), questions, strict=True)
        ]

    def caption(self, images, **options):
        return [example.captions[-1] for example in self._known(images)]

    def draw(self, prompts, **options):
        return [SimpleNamespace(image=self.drawings[prompt]) for prompt in prompts]

    def edit(self, images, instructions, **options):
        return [example.edits[0].target for example in self._known(images)]

    def reconstruct(self, images, *, seed, first):
        return [image.copy() for image in images]


@pytest.fixture(scope="module")
def scenes():
    return scenes_data(CONFIG)


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    quiet = rich.console.Console(file=io.StringIO())
    flat = evaluate(lambda: Oracle(scenes), BlindModel, CONFIG, workdir, data=scenes, console=quiet)
    return workdir, flat


def test_the_exact_judge_accepts_perfect_answers(run):
    _, flat = run
    for name in (
        *(f"generation/{category}" for category in geneval.CATEGORIES),
        "generation/overall",
        "understanding/qa",
        "understanding/caption",
        "editing/success",
        "editing/reached",
        "editing/unchanged",
    ):
        assert flat[name] == 1.0, name


def test_all_suites_that_run_without_a_flag_make_scores_that_they_declare(run, declared):
    assert declared >= SUITES.keys() - {UNIFIED}


@pytest.mark.parametrize("name", ["reconstruction/psnrs", "editing/kept", "unified/cosine/true"])
def test_a_name_that_no_suite_makes_is_of_none(name):
    assert suite_of(name) is None


def test_the_untrained_model_is_scored_as_well(run):
    _, flat = run
    assert flat["generation/overall.untrained"] == 0.0
    assert flat["understanding/caption.untrained"] == 0.0
    assert flat["reconstruction/psnr.untrained"] < 15 < flat["reconstruction/psnr"]


def test_counts_are_per_category_and_per_kind(run):
    _, flat = run
    assert flat["generation/single.n"] == CONFIG.prompts
    assert flat["understanding/qa/colour.n"] == CONFIG.questions
    assert flat["editing/success.n"] == CONFIG.edits


def test_scores_on_disk_are_the_scores_returned(run):
    workdir, flat = run
    assert read_scores(workdir / "scores.json") == flat
    assert read_about(workdir / "scores.json")["shapes"] == {"64 x 64": CONFIG.pictures}
    assert read_about(workdir / "scores.json")["answer_rule"] == "exact"


def test_scores_tell_other_pictures_and_other_encoders_apart(tmp_path):
    def about(data, name):
        evaluate(PerfectModel, None, CONFIG, tmp_path / name, data=data, only=("captions",))
        return read_about(tmp_path / name / "scores.json")

    plain = EvaluationData(examples(6))
    others = EvaluationData([dataclasses.replace(e, captions=("b",)) for e in examples(6)])
    one, same, other = (about(*run) for run in ((plain, "a"), (plain, "b"), (others, "c")))
    assert one["pictures"] == same["pictures"] != other["pictures"]
    assert one["measured_by"] == PerfectModel.fingerprint


def test_records_name_pictures_that_exist(run):
    workdir, _ = run
    records = read_records(workdir / "evaluation")
    assert set(records) == {"reconstructions", "generations", "answers", "captions", "edits"}
    assert set(records["edits"][0]) == {
        *("key", "kind", "instruction", "before", "after", "target"),
        *("success", "reached", "unchanged", "reason"),
    }
    with Image.open(workdir / "evaluation" / records["edits"][0]["target"]) as image:
        assert image.size == (64, 64)


def test_few_records_of_every_category_are_kept(run):
    workdir, _ = run
    kept = [row["category"] for row in read_records(workdir / "evaluation")["generations"]]
    assert kept == [category for category in geneval.CATEGORIES for _ in range(CONFIG.shown)]


def test_a_second_evaluation_leaves_no_stale_pictures(scenes, tmp_path):
    quiet = rich.console.Console(file=io.StringIO())
    for shown in (2, 1):
        config = EvaluationConfig(**{**vars(CONFIG), "shown": shown, "edits": 0, "questions": 0})
        evaluate(lambda: Oracle(scenes), None, config, tmp_path, data=scenes, console=quiet)
    assert len(list((tmp_path / "evaluation" / "captions").glob("*.png"))) == 1


def test_held_out_scenes_are_the_same_in_every_run(scenes):
    again = scenes_data(CONFIG)
    assert [p.text for p in again.prompts] == [p.text for p in scenes.prompts]
    assert np.array_equal(again.examples[3].image, scenes.examples[3].image)


def test_development_and_test_are_other_scenes(scenes):
    other = scenes_data(CONFIG, split="development")
    assert not np.array_equal(other.examples[3].image, scenes.examples[3].image)
    assert [p.text for p in other.prompts] != [p.text for p in scenes.prompts]


def test_scenes_come_in_the_sizes_of_training(tmp_path):
    config = dataclasses.replace(CONFIG, prompts=8, questions=0, edits=4, shown=99)
    data = scenes_data(config, sizes=((48, 80), (64, 64)))
    quiet = rich.console.Console(file=io.StringIO())
    oracle = Oracle(data)
    oracle.draw = lambda prompts, *, size, **options: [
        SimpleNamespace(image=oracle.drawings[prompt]) for prompt in prompts
    ]
    flat = evaluate(lambda: oracle, None, config, tmp_path, data=data, console=quiet)
    assert flat["generation/overall"] == flat["editing/success"] == 1.0
    assert set(read_about(tmp_path / "scores.json")["shapes"]) == {"48 x 80", "64 x 64"}


def test_the_trained_model_leaves_the_memory_before_the_untrained_one_comes(scenes, tmp_path):
    held = []

    class WithEncoder(Oracle):
        encoder = PerfectModel()

    def load():
        model = WithEncoder(scenes)
        held.append(weakref.ref(model))
        return model

    def load_untrained():
        assert held[0]() is None
        return BlindModel()

    config = dataclasses.replace(CONFIG, questions=0, edits=0, prompts=0)
    quiet = rich.console.Console(file=io.StringIO())
    flat = evaluate(
        load,
        load_untrained,
        config,
        tmp_path,
        data=scenes,
        console=quiet,
    )
    assert flat["reconstruction/psnr.untrained"] < flat["reconstruction/psnr"]


def test_every_sample_of_both_models_is_in_the_outcomes(run, scenes):
    workdir, flat = run
    rows = read_outcomes(workdir / "evaluation")
    for model in ("trained", "untrained"):
        mine = [row for row in rows if row["model"] == model]
        answers = [row for row in mine if row["suite"] == "answers"]
        assert len(answers) == flat["understanding/qa.n"]
        assert len([row for row in mine if row["suite"] == "generations"]) == 24
        facet = "" if model == "trained" else ".untrained"
        mean = sum(row["score"] for row in answers) / len(answers)
        assert mean == pytest.approx(flat[f"understanding/qa{facet}"])
    pairs = collections.Counter(
        (row["suite"], row["key"], row.get("question"), row.get("instruction")) for row in rows
    )
    assert set(pairs.values()) == {2}


@pytest.mark.parametrize("judged", [True, False])
def test_what_a_head_draws_without_details_is_kept_for_the_report_alone(tmp_path, judged):
    class Detailed(PerfectModel):
        without_details = BlindModel()

    config = EvaluationConfig(image_size=SIDE, pictures=3, prompts=2, questions=0, edits=0, shown=3)
    data = EvaluationData(examples(3), prompts() if judged else ())
    flat = evaluate(Detailed, Detailed, config, tmp_path, data=data)
    kept = read_records(tmp_path / "evaluation")["details"]
    asked = [prompts()[place].text for place in (0, len(COLOURS), 1)]  # of both categories
    asked = asked if judged else [example.captions[0] for example in examples(3)]
    assert [row["prompt"] for row in kept] == asked
    pictures = [np.asarray(Image.open(tmp_path / "evaluation" / kept[0][name])) for name in PARTS]
    np.testing.assert_array_equal(pictures[0], 128)  # of the blind one
    assert pictures[1].min() < 128 < pictures[1].max()
    rows = read_outcomes(tmp_path / "evaluation")
    assert [row["model"] for row in rows if row["suite"] == "details"] == 3 * ["trained"]
    assert not any(name.startswith("details") for name in flat)


def test_half_a_surrogate_pair_does_not_lose_an_evaluation(tmp_path):
    class Broken(PerfectModel):
        def caption(self, images, **options):
            return ["a \ud83d square"] * len(images)

    config = EvaluationConfig(image_size=32, pictures=4, prompts=0, questions=0, edits=0)
    quiet = rich.console.Console(file=io.StringIO())
    data = EvaluationData(examples(4))
    evaluate(Broken, None, config, tmp_path, data=data, console=quiet)
    assert read_outcomes(tmp_path / "evaluation")[-1]["prediction"] == "a \ud83d square"
    assert "a ? square" in write_report(tmp_path).read_text(encoding="utf-8")


def test_data_without_prompts_is_scored_by_retrieval_and_without_untrained_by_null(tmp_path):
    config = EvaluationConfig(image_size=32, pictures=6, questions=2, edits=2, batch_size=4)
    data = EvaluationData(examples(6))
    quiet = rich.console.Console(file=io.StringIO())
    flat = evaluate(PerfectModel, None, config, tmp_path, data=data, console=quiet)
    assert "generation/overall" not in flat
    assert flat["generation/retrieval.n"] == 6
    assert flat["understanding/qa.untrained"] is None


def test_scores_that_need_an_encoder_are_left_out_and_named_where_there_is_none(tmp_path):
    class WithoutEncoder(PerfectModel):
        encoder = None

    config = EvaluationConfig(image_size=32, pictures=6, questions=2, edits=2, batch_size=4)
    printed, data = io.StringIO(), EvaluationData(examples(6))
    console = rich.console.Console(file=printed, width=200)
    flat = evaluate(WithoutEncoder, None, config, tmp_path, data=data, console=console)
    names = "reconstruction/kid, generation/retrieval, generation/kid"
    assert f"no encoder was trained or imported; left out: {names}\n" in printed.getvalue()
    assert not set(names.split(", ")) & flat.keys() and "reconstruction/psnr" in flat
    report = write_report(tmp_path).read_text(encoding="utf-8")
    assert f"No encoder was there to measure {names}." in report


def test_nothing_to_evaluate_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no examples and no prompts"):
        evaluate(PerfectModel, None, CONFIG, tmp_path, data=EvaluationData([]))
