"""The command that fits losses to shares of documents, on a table whose law is known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pyarrow.parquet
import pytest

from experiments import mixture_law
from experiments.sweeps import mixture
from unicom_jax.sweeps.laws import PowerLaw

TEXT = PowerLaw(floor=0.8, factor=0.05, exponent=0.5)
DRAWING = PowerLaw(floor=0.3, factor=0.1, exponent=0.8)


def table():
    """Losses that fall with the share of captions (text) or of drawings; seeds differ by 10%."""
    for share in mixture.SHARES:
        for score, value in (
            (mixture.ONLY_TEXT, TEXT(1 - share)),
            (mixture.ONLY_FLOW, DRAWING(share)),
        ):
            stage, metric = score.split(":")
            for seed in (0, 1):
                yield {
                    "variant": mixture.variant_name(share),
                    "seed": seed,
                    "stage": stage,
                    "metric": metric,
                    "step": 400,
                    "tokens": 1000,
                    "value": value * (1 + 0.1 * seed),
                }


def run(tmp_path, monkeypatch, rows, figure=""):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "results.parquet")
    monkeypatch.setattr(mixture_law, "WORKDIR", SimpleNamespace(value=str(tmp_path)))
    monkeypatch.setattr(mixture_law, "FIGURE", SimpleNamespace(value=figure))
    mixture_law.main([])


def test_each_loss_is_fitted_to_the_share_of_its_own_documents(tmp_path, monkeypatch, capsys):
    run(tmp_path, monkeypatch, list(table()), figure=str(tmp_path / "mixture.svg"))
    said = capsys.readouterr().out
    assert "### text" in said and "share^0.50; γ in [0.50, 0.50]" in said
    assert "### drawing" in said and "share^0.80; γ in [0.80, 0.80]" in said
    assert (tmp_path / "mixture.svg").read_text().count('<g id="axes_') == 2


def test_a_loss_that_falls_like_a_logarithm_is_said_to_have_no_power(tmp_path, monkeypatch, capsys):
    rows = list(table())
    for row in rows:
        if row["metric"] == mixture.ONLY_TEXT.split(":")[1]:
            share = float(row["variant"].removeprefix("drawing_"))
            row["value"] = 0.95 - 0.004 * math.log(1 - share)
    run(tmp_path, monkeypatch, rows)
    text, drawing = capsys.readouterr().out.split("### drawing")
    assert "so this is no power law" in text and "γ in" not in text
    assert "γ in" in drawing and "no power law" not in drawing


def test_a_sweep_with_one_seed_so_far_has_a_law_and_no_interval(tmp_path, monkeypatch, capsys):
    run(tmp_path, monkeypatch, [row for row in table() if row["seed"] == 0])
    said = capsys.readouterr().out
    assert "share^0.50; no interval, as each share has one seed" in said and "γ in" not in said


def test_a_figure_that_cannot_be_drawn_is_named_and_not_the_table(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="^--figure=laws.xyz: Format 'xyz' is not supported"):
        run(tmp_path, monkeypatch, list(table()), figure="laws.xyz")


def test_a_table_without_these_losses_ends_in_one_line(tmp_path, monkeypatch):
    rows = [{**row, "metric": "eval/loss"} for row in table()]
    with pytest.raises(SystemExit, match="no pretrain:eval/text/text yet; let the sweep end"):
        run(tmp_path, monkeypatch, rows)
