"""`scores.json` and the printed table."""

from __future__ import annotations

import io
import json

import pytest
import rich.console

from tests.evaluation.helpers import fake_scores
from unicom_jax.evaluation.intervals import Interval
from unicom_jax.evaluation.scores import (
    Score,
    flatten,
    print_scores,
    proportion,
    read_scores,
    score_names,
    standing,
    write_scores,
)


def flat_score(name, value, low, high, untrained=None, chance=None):
    before = [Score(name, Interval(untrained, 0, 0), 1)] if untrained is not None else []
    return flatten([Score(name, Interval(value, low, high), 10, chance)], before)


def test_a_score_lies_flat_with_its_five_facets():
    flat = flat_score("understanding/qa", 0.8, 0.7, 0.9, untrained=0.1, chance=0.3)
    assert flat == {
        "understanding/qa": 0.8,
        "understanding/qa.n": 10,
        "understanding/qa.low": 0.7,
        "understanding/qa.high": 0.9,
        "understanding/qa.untrained": 0.1,
        "understanding/qa.chance": 0.3,
    }


def test_what_was_not_measured_is_null(tmp_path):
    path = tmp_path / "scores.json"
    write_scores(path, flat_score("reconstruction/frechet", float("nan"), 0.0, 1.0))
    written = json.loads(path.read_text())
    assert written["reconstruction/frechet"] is None
    assert written["reconstruction/frechet.untrained"] is None
    assert written["reconstruction/frechet.chance"] is None


def test_scores_come_back_as_written_and_in_order(tmp_path):
    flat = fake_scores()
    write_scores(tmp_path / "scores.json", flat)
    assert read_scores(tmp_path / "scores.json") == flat
    assert score_names(flat)[:4] == [
        "reconstruction/psnr",
        "reconstruction/ssim",
        "reconstruction/frechet",
        "generation/single",
    ]


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text('{"understanding/qa": 0.')
    with pytest.raises(ValueError, match=r"scores\.json: not valid JSON.*run the evaluation again"):
        read_scores(path)


def test_a_proportion_counts_its_successes():
    score = proportion("editing/success", [True, False, True, True], chance=0.5)
    assert (score.interval.value, score.count, score.chance) == (0.75, 4, 0.5)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.5, 0.9, "above"), (0.3, 0.9, "level"), (0.1, 0.3, "below")],
)
def test_a_score_stands_above_only_with_its_whole_interval(low, high, expected):
    flat = flat_score("understanding/qa", (low + high) / 2, low, high, untrained=0.2, chance=0.4)
    assert standing(flat, "understanding/qa") == expected


def test_a_small_distance_stands_above_a_large_one():
    flat = flat_score("reconstruction/frechet", 1.0, 0.8, 1.2, untrained=5.0)
    assert standing(flat, "reconstruction/frechet") == "above"


def test_a_score_without_a_baseline_stands_nowhere():
    assert standing(flat_score("understanding/qa", 0.5, 0.4, 0.6), "understanding/qa") == ""


def test_the_table_shows_untrained_and_chance_and_fits_80_columns():
    stream = io.StringIO()
    print_scores(fake_scores(), rich.console.Console(file=stream, width=80))
    line = next(line for line in stream.getvalue().splitlines() if "understanding/qa " in line)
    assert line.split() == ["understanding/qa", "74.2%", "68.5%–79.2%", "0.0%", "36.0%", "256"]
    assert "…" not in stream.getvalue()
