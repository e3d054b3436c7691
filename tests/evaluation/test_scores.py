"""`scores.json` and the printed table."""

from __future__ import annotations

import io
import json

import pytest
import rich.console

from tests.evaluation.helpers import fake_scores
from unicom_jax.evaluation.intervals import Interval, mean_interval
from unicom_jax.evaluation.scores import (
    Score,
    flatten,
    graded,
    print_scores,
    proportion,
    read_about,
    read_scores,
    score_names,
    standing,
    write_scores,
)


def flat_score(name, value, low, high, untrained=None, chance=None):
    if isinstance(untrained, float):
        untrained = (untrained, untrained)
    before = [Score(name, Interval(untrained[0], *untrained), 1)] if untrained else []
    return flatten([Score(name, Interval(value, low, high), 10, chance)], before)


def test_a_score_is_flat_with_its_facets():
    flat = flat_score("understanding/qa", 0.8, 0.7, 0.9, untrained=0.1, chance=0.3)
    assert flat == {
        "understanding/qa": 0.8,
        "understanding/qa.n": 10,
        "understanding/qa.low": 0.7,
        "understanding/qa.high": 0.9,
        "understanding/qa.untrained": 0.1,
        "understanding/qa.untrained_low": 0.1,
        "understanding/qa.untrained_high": 0.1,
        "understanding/qa.chance": 0.3,
    }


def test_what_was_not_measured_is_null(tmp_path):
    path = tmp_path / "scores.json"
    write_scores(path, flat_score("reconstruction/kid", float("nan"), 0.0, 1.0))
    written = json.loads(path.read_text())
    assert written["reconstruction/kid"] is None
    assert written["reconstruction/kid.untrained"] is None
    assert written["reconstruction/kid.chance"] is None


def test_scores_come_back_as_written_and_in_order(tmp_path):
    flat = fake_scores()
    write_scores(tmp_path / "scores.json", flat)
    assert read_scores(tmp_path / "scores.json") == flat
    assert score_names(flat)[:4] == [
        "reconstruction/psnr",
        "reconstruction/ssim",
        "reconstruction/kid",
        "generation/single",
    ]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"understanding/qa": 0.', "not JSON"),
        (b'{"about": "\xe2\x80', "not UTF-8"),
        (b"[]", "a list"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, what):
    path = tmp_path / "scores.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"scores\.json .*{what}.*run the evaluation again"):
        read_scores(path)


def test_marks_of_one_picture_have_the_widest_interval():
    """A kind with a single question must not end an evaluation."""
    score = graded("understanding/qa/rare", [0.75], 0.5, ["a"])
    assert (score.interval, score.count) == (Interval(0.75, 0.0, 1.0), 1)


def test_a_proportion_counts_its_successes():
    score = proportion("editing/success", [True, False, True, True], chance=0.5)
    assert (score.interval.value, score.count, score.chance) == (0.75, 4, 0.5)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.5, 0.9, "above"), (0.3, 0.9, "level"), (0.1, 0.3, "below")],
)
def test_a_score_is_above_only_with_its_whole_interval(low, high, expected):
    flat = flat_score("understanding/qa", (low + high) / 2, low, high, untrained=0.2, chance=0.4)
    assert standing(flat, "understanding/qa") == expected


def test_a_score_is_compared_with_the_untrained_models_interval():
    overlap = flat_score("understanding/qa", 0.5, 0.4, 0.6, untrained=(0.2, 0.45))
    assert standing(overlap, "understanding/qa") == "level"
    clear = flat_score("understanding/qa", 0.5, 0.46, 0.6, untrained=(0.2, 0.45))
    assert standing(clear, "understanding/qa") == "above"
    worse = flat_score("understanding/qa", 0.1, 0.0, 0.15, untrained=(0.2, 0.45))
    assert standing(worse, "understanding/qa") == "below"


def test_a_distance_is_compared_with_the_untrained_models_interval():
    overlap = flat_score("reconstruction/kid", 0.5, 0.4, 0.6, untrained=(0.55, 0.8))
    assert standing(overlap, "reconstruction/kid") == "level"
    clear = flat_score("reconstruction/kid", 0.5, 0.4, 0.54, untrained=(0.55, 0.8))
    assert standing(clear, "reconstruction/kid") == "above"


def test_a_chance_that_cannot_be_passed_is_no_bar():
    alone = flat_score("editing/unchanged", 0.9, 0.8, 0.95, chance=1.0)
    assert standing(alone, "editing/unchanged") == ""
    beside = flat_score("editing/unchanged", 0.9, 0.8, 0.95, untrained=(0.0, 0.1), chance=1.0)
    assert standing(beside, "editing/unchanged") == "above"


@pytest.mark.parametrize("kind", ["[/x]", "[red]", "a.low", "x.n"])
def test_any_kind_of_question_can_stand_in_the_table(kind):
    flat = flatten([proportion(f"understanding/qa/{kind}", [True, False])])
    assert score_names(flat) == [f"understanding/qa/{kind}"]
    stream = io.StringIO()
    print_scores(flat, rich.console.Console(file=stream, width=100))
    assert f"understanding/qa/{kind} " in stream.getvalue()


def test_how_scores_were_made_is_in_their_file(tmp_path):
    path = tmp_path / "scores.json"
    write_scores(path, fake_scores(), {"split": "test", "guidance": 3.0})
    assert read_about(path) == {"split": "test", "guidance": 3.0}
    assert read_scores(path) == fake_scores()


def test_marks_between_0_and_1_have_the_interval_of_a_mean():
    marks = [0.3, 1.0, 0.6, 0.9]
    value, low, high = graded("understanding/qa", marks, 0.1, "abcd").interval
    assert (value, low) == pytest.approx(mean_interval(marks)[:2])
    assert mean_interval(marks).high > high == 1.0
    whole = graded("understanding/qa", [0.0, 1.0, 1.0], 0.1, "abc")
    assert whole == proportion("understanding/qa", [False, True, True], 0.1)


def test_a_small_distance_is_better_than_a_large_one():
    flat = flat_score("reconstruction/kid", 1.0, 0.8, 1.2, untrained=5.0)
    assert standing(flat, "reconstruction/kid") == "above"


def test_a_score_without_a_baseline_has_no_standing():
    assert standing(flat_score("understanding/qa", 0.5, 0.4, 0.6), "understanding/qa") == ""


def test_the_table_shows_untrained_and_chance_and_fits_80_columns():
    stream = io.StringIO()
    print_scores(fake_scores(), rich.console.Console(file=stream, width=80))
    line = next(line for line in stream.getvalue().splitlines() if "understanding/qa " in line)
    assert line.split() == ["understanding/qa", "74.2%", "68.5%–79.2%", "0.0%", "36.0%", "256"]
    assert "…" not in stream.getvalue()
