"""The command that says after how many steps a share of the drawings is correct."""

from __future__ import annotations

import math

import pyarrow
import pyarrow.parquet
import pytest

from experiments import steps_to_drawing
from experiments.steps_to_drawing import Run, runs_of, summary

# Both kinds at steps 50 and 100, by variant and seed.
CURVES = {
    ("full", 0): ((0.0, 0.4), (0.4, 0.6)),
    ("full", 1): ((0.2, 0.2), (0.5, 0.5)),
    ("few", 0): ((0.6, 0.4), (0.9, 0.9)),
    ("few", 1): ((0.1, 0.1), (0.3, 0.3)),
}
EACH = 10.0  # operations of a step; the stages before the one that draws took 1000


def table() -> list[dict]:
    return [
        {
            "variant": variant,
            "seed": seed,
            "stage": "pretrain",
            "metric": score.partition(":")[2],
            "step": step,
            "value": value,
            "flops": 1000 + EACH * step,
        }
        for (variant, seed), points in CURVES.items()
        for step, values in zip((50, 100), points, strict=True)
        for score, value in zip(steps_to_drawing.SCORES, values, strict=True)
    ]


def test_a_share_is_reached_on_a_straight_line_between_two_evaluations():
    run = Run([(50, 0.2), (100, 0.6), (150, 0.4)], each=1.0)
    assert run.steps_to(0.3) == pytest.approx(62.5)
    assert run.steps_to(0.1) == pytest.approx(25.0)
    assert run.steps_to(0.7) == math.inf


def test_kinds_are_averaged_and_operations_are_of_the_stage_alone():
    run = runs_of(table(), steps_to_drawing.SCORES)["full"][0]
    assert run.curve == [(50, pytest.approx(0.2)), (100, pytest.approx(0.5))]
    assert run.each == EACH


def test_a_run_that_does_not_get_there_is_counted_and_has_no_ratio():
    full, few = summary(runs_of(table(), steps_to_drawing.SCORES), 0.5)
    assert full == ["50%", "full", "100", "100 / 100", "1e+03", "–"]
    assert few == ["50%", "few", "50 in 1 of 2", "50 / never", "500 in 1 of 2", "× 0.50, 1 seed"]


def test_variants_are_compared_by_the_geometric_mean_over_seeds():
    _, few = summary(runs_of(table(), steps_to_drawing.SCORES), 0.2)
    # 20 steps against 50 with seed 0, 75 against 50 with seed 1
    assert few[3] == "20 / 75" and few[-1].startswith(f"× {math.sqrt(0.4 * 1.5):.2f} (")


def test_the_table_of_a_sweep_is_read_and_printed_in_markdown(tmp_path, monkeypatch, capsys):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table()), tmp_path / "results.parquet")
    monkeypatch.setattr("sys.argv", ["steps", f"--workdir={tmp_path}", "--share", "0.2", "0.5"])
    steps_to_drawing.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("| steps against full |") and len(lines) == 6


def test_a_sweep_that_drew_nothing_while_it_trained_is_said_to(tmp_path, monkeypatch):
    rows = [{**row, "metric": "eval/loss"} for row in table()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "results.parquet")
    monkeypatch.setattr("sys.argv", ["steps", f"--workdir={tmp_path}"])
    with pytest.raises(SystemExit, match="no run has pretrain:generation/single and"):
        steps_to_drawing.main()
