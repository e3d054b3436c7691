"""`experiments.benchmarks.rollouts`: what its table says, and that both contestants work."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from experiments.benchmarks.rollouts import line_up, table_of
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


@pytest.mark.slow
def test_rollouts_and_the_engine_draw_and_write_as_many(tmp_path):
    ours, engine = line_up(write_run(tmp_path / "run"), batch=2, tokens=3)
    assert ours["draw"]().shape[0] == len(engine["draw"]()) == 2
    assert ours["write"]().shape == (2, 3) and len(engine["write"]()) == 2
