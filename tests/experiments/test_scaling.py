"""The command that fits scaling laws, on a table whose law is known."""

from __future__ import annotations

import io
import math
import re
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
from absl import app
from fsspec.implementations.memory import MemoryFileSystem

from experiments import mixture_law, scaling
from experiments.sweeps import isoflop
from unicom_jax.core import paths
from unicom_jax.sweeps.laws import Surface, iso_flop

TRUE = Surface(floor=1.0, size=40.0, data=300.0, alpha=0.5, beta=0.5)


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    monkeypatch.setattr(scaling, "weights_of", lambda width: 30 * width**2)


def table(score, law=TRUE):
    """Rows of the sweep's grid and its held-out runs, two evaluations and two seeds each."""
    stage, metric = score.split(":")
    grid = [(budget, width, name) for name, (budget, width) in scaling.GRID.items()]
    grid += [(budget, isoflop.HELD_OUT_WIDTH, name) for name, budget in isoflop.HELD_OUT.items()]
    for budget, width, name in grid:
        weights = 30 * width**2
        for seed in (0, 1):
            for step, share in ((50, 0.5), (100, 1.0)):
                tokens = share * budget / 6 / weights
                yield {
                    "variant": name,
                    "seed": seed,
                    "stage": stage,
                    "metric": metric,
                    "step": step,
                    "tokens": tokens,
                    "value": law(weights, tokens) * (1 + 1e-5 * seed),
                }


def runs_of(rows, score):
    return tuple(list(found.values()) for found in scaling.runs_of(rows, score))


def test_the_last_evaluation_of_every_run_is_read():
    grid, held_out = runs_of(list(table(isoflop.TEXT)), isoflop.TEXT)
    assert len(grid) == 2 * len(scaling.GRID) and len(held_out) == 4
    assert {run.budget for run in grid} == set(isoflop.WIDTHS)
    assert all(run.weights * run.tokens * 6 == pytest.approx(run.budget) for run in grid)


def test_a_seed_with_other_latents_does_not_move_the_fits():
    rows = list(table(isoflop.FLOW))
    other = [{**row, "value": row["value"] * (1 + 0.2 * row["seed"])} for row in rows]
    plain, shifted = ([run.loss for run in runs_of(one, isoflop.FLOW)[0]] for one in (rows, other))
    assert np.ptp(np.divide(shifted, plain)) < 1e-6


def test_the_summary_has_exponents_and_predictions_of_the_held_out_runs(monkeypatch):
    monkeypatch.setattr(scaling, "RESAMPLES", 4)
    grid, held_out = runs_of(list(table(isoflop.FLOW)), isoflop.FLOW)
    text = "\n".join(scaling.summary("drawing", grid, held_out))
    assert text.startswith("### drawing\n\n| operations | best weights")
    # Sizes that are not evenly spread around the best one shift the vertex of a parabola.
    assert re.search(
        r"a = 0\.(4|5)\d \[.*\] from parabolas, 0\.50 \[0\.50, 0\.50\].*; b = 0\.(4|5)\d \[", text
    )
    for budget in isoflop.HELD_OUT.values():
        for first in (min(isoflop.WIDTHS), scaling.LARGE):
            begins = f"held-out run of {budget:.1e} operations, from budgets of {first:.1e} on: "
            (line,) = (line for line in text.splitlines() if line.startswith(begins))
            assert re.search(r"\(2 seeds\): [+-]0\.0%, within 2%$", line)


def test_large_budgets_are_fitted_without_the_small_ones(monkeypatch):
    """Which do not mislead the prediction then."""
    monkeypatch.setattr(scaling, "RESAMPLES", 4)
    small = {name for name, (budget, _) in scaling.GRID.items() if budget < scaling.LARGE}
    rows = [
        {**row, "value": row["value"] * (1.3 if row["variant"] in small else 1)}
        for row in table(isoflop.TEXT)
    ]
    lines = scaling.summary("text", *runs_of(rows, isoflop.TEXT))
    whole, large = [line for line in lines if line.startswith("held-out run")][:2]
    assert whole.endswith("NOT within 2%") and large.endswith("0.0%, within 2%")


def test_an_exponent_that_the_runs_do_not_determine_is_said_to_be_unknown(monkeypatch):
    """Size matters so much that no budget has its best one among those tried."""
    monkeypatch.setattr(scaling, "RESAMPLES", 2)
    law = Surface(floor=1.0, size=40.0, data=1.0, alpha=0.5, beta=0.5)
    grid, held_out = runs_of(list(table(isoflop.TEXT, law)), isoflop.TEXT)
    text = "\n".join(scaling.summary("text", grid, held_out))
    without = ", ".join(f"{budget:.1e}" for budget in isoflop.WIDTHS)
    assert f"Without a minimum among the sizes that were tried: {without}" in text
    assert (
        "a = unknown (only 0 of 2 draws of runs have an estimate" in text and "b = unknown" in text
    )


def both_losses(change=lambda rows: rows):
    """The runs of a table whose best size grows faster for drawing, whose rows `change` edits."""
    steep = Surface(floor=1.0, size=40.0, data=300.0, alpha=0.4, beta=0.5)
    text = scaling.runs_of(list(table(isoflop.TEXT)), isoflop.TEXT)[0]
    drawing = scaling.runs_of(change(list(table(isoflop.FLOW, steep))), isoflop.FLOW)[0]
    return text, drawing


def test_the_difference_of_exponents_is_drawing_minus_text(monkeypatch):
    monkeypatch.setattr(scaling, "RESAMPLES", 4)
    text, drawing = both_losses()
    expected = iso_flop(list(drawing.values())).a - iso_flop(list(text.values())).a
    assert expected > 0.02
    found = re.search(r"a of drawing - a of text = (\S+) \[", scaling.difference(text, drawing))
    assert float(found[1]) == pytest.approx(expected, abs=0.006)


def test_the_two_losses_of_a_run_are_paired_in_whatever_order_their_rows_are(monkeypatch):
    monkeypatch.setattr(scaling, "RESAMPLES", 4)
    expected = scaling.difference(*both_losses())
    assert scaling.difference(*both_losses(lambda rows: rows[::-1])) == expected


def test_runs_with_one_of_the_two_losses_are_left_out_and_named(monkeypatch):
    monkeypatch.setattr(scaling, "RESAMPLES", 4)
    gone = next(iter(scaling.GRID))
    text, drawing = both_losses(
        lambda rows: [row for row in rows if (row["variant"], row["seed"]) != (gone, 1)]
    )
    said = scaling.difference(text, drawing)
    assert said.endswith(f"from parabolas; without {gone}, seed 1 (no loss of drawing)")
    del text[gone, 1]
    assert said.startswith(scaling.difference(text, drawing))
    assert scaling.difference(drawing, {}).endswith("unknown (no run has both losses)")


def test_losses_of_one_kind_are_not_taken_for_the_other():
    assert scaling.runs_of(list(table(isoflop.TEXT)), isoflop.FLOW) == ({}, {})


SMALL, *_ = isoflop.WIDTHS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: None, "no pretrain:eval/text yet; let the sweep end"),
        (lambda row: {**row, "variant": "align"}, "align is no variant of experiments/sweeps/iso"),
        (lambda row: {**row, "value": math.nan}, "seed 0, has pretrain:eval/text=nan after"),
        (lambda row: {**row, "tokens": None}, "after None tokens at step 50: train it again"),
        (
            lambda row: row if row["variant"] == isoflop.variant_name(SMALL, 16) else None,
            f"the budget {SMALL:.3g} has 1 sizes; a parabola needs at least three",
        ),
    ],
)
def test_a_table_that_determines_no_law_ends_in_one_line(tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(scaling, "RESAMPLES", 4)
    rows = [changed for row in table(isoflop.TEXT) if (changed := change(row))]
    found = pyarrow.Table.from_pylist(rows or [{"stage": "codec", "metric": "flow"}])
    pyarrow.parquet.write_table(found, tmp_path / "results.parquet")
    said = ending(tmp_path, monkeypatch)
    assert said.startswith(f"{tmp_path}/results.parquet: text: ") and message in said


def test_a_folder_without_a_table_ends_in_one_line(tmp_path, monkeypatch):
    assert "results.parquet does not exist; run: unicom sweep" in ending(tmp_path, monkeypatch)
    (tmp_path / "results.parquet").write_text("x")
    assert "write it again with unicom sweep table" in ending(tmp_path, monkeypatch)


def test_a_table_that_no_sweep_wrote_ends_in_one_line(tmp_path, monkeypatch):
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "results.parquet")
    assert "results.parquet is not the table of a sweep" in ending(tmp_path, monkeypatch)


def test_a_sweep_in_a_store_is_looked_for_in_the_store(monkeypatch):
    kept = MemoryFileSystem(skip_instance_cache=True)
    monkeypatch.setattr(paths, "_filesystem", lambda *_: kept)
    said = ending("s3://bucket/isoflop", monkeypatch)
    assert said.startswith("s3://bucket/isoflop/results.parquet does not exist")
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"stage": ["a"], "metric": ["b"]}), buffer)
    kept.pipe_file("s3://bucket/isoflop/results.parquet", buffer.getvalue())
    assert "no pretrain:eval/text yet" in ending("s3://bucket/isoflop", monkeypatch)


@pytest.mark.parametrize("command", [scaling, mixture_law])
def test_a_folder_that_is_no_flag_is_refused(command, monkeypatch):
    """It would otherwise be ignored, and the laws those of another folder."""
    monkeypatch.setattr(command, "WORKDIR", SimpleNamespace(value="runs/isoflop"))
    with pytest.raises(app.UsageError, match="did you mean --workdir=runs/other"):
        command.main(["scaling", "runs/other"])


def ending(folder, monkeypatch):
    monkeypatch.setattr(scaling, "WORKDIR", SimpleNamespace(value=str(folder)))
    monkeypatch.setattr(scaling, "FIGURE", SimpleNamespace(value=""))
    with pytest.raises(SystemExit) as ended:
        scaling.main([])
    assert "\n" not in str(ended.value.code)
    return ended.value.code


def test_the_laws_are_drawn_into_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "RESAMPLES", 4)
    rows = [row for score in scaling.LOSSES.values() for row in table(score)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "results.parquet")
    monkeypatch.setattr(scaling, "WORKDIR", SimpleNamespace(value=str(tmp_path)))
    monkeypatch.setattr(scaling, "FIGURE", SimpleNamespace(value=str(tmp_path / "laws.svg")))
    scaling.main([])
    assert "### drawing" in capsys.readouterr().out
    drawn = (tmp_path / "laws.svg").read_text()
    assert drawn.count('<g id="axes_') == 6
    monkeypatch.setattr(scaling, "FIGURE", SimpleNamespace(value=str(tmp_path / "laws.mpx")))
    with pytest.raises(SystemExit, match="--figure=.*laws.mpx: .*mpx"):
        scaling.main([])
