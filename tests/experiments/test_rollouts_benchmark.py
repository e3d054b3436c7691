"""`experiments.benchmarks.rollouts`: what its table says, and that both contestants work."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from experiments.benchmarks.rollouts import line_up, shares_of, step_parts, table_of
from tests.runs.workdirs import write_run


def printed(seconds):
    file = io.StringIO()
    Console(file=file, width=200).print(table_of({"draw": np.array(seconds)}, batch=8))
    return file.getvalue()


def test_the_ratio_is_of_throughputs_within_each_round():
    """Both slow down in the second round; rollouts are always twice as fast."""
    shown = printed([[1.0, 2.0], [10.0, 20.0], [2.0, 4.0]])
    assert "2 [2, 2]" in shown and "reached" in shown
    assert "4 [2.4, 6]" in shown  # 8, .8 and 4 pictures a second
    assert "missed" in printed([[1.0, 0.7]] * 3)


def test_shares_of_a_step_add_up_to_all_of_it():
    shares = shares_of(np.array([[6.0, 1.0, 4.0], [3.0, 0.5, 2.0]]))
    assert {name: one.median for name, one in shares.items()} == pytest.approx(
        {"rollouts": 0.5, "rewards": 0.1, "update": 0.4}
    )


@pytest.mark.slow
def test_the_parts_of_a_step_are_those_of_training(tmp_path):
    run = write_run(tmp_path / "run", u4g__captions="data", u4g__inner_steps=2)
    turns = step_parts(run, "u4g")
    assert turns["prepare"]().scores.total.shape == (4,)
    assert turns["rewards"]().total.shape == (4,)
    turns["update"]()
    turns["update"]()


@pytest.mark.slow
def test_rollouts_and_the_engine_draw_and_write_as_many(tmp_path):
    ours, engine = line_up(write_run(tmp_path / "run"), batch=2, tokens=3)
    assert ours["draw"]().shape[0] == len(engine["draw"]()) == 2
    assert ours["write"]().shape == (2, 3) and len(engine["write"]()) == 2
