"""`unicom train` on six sources of six formats, weighted by tokens: stopped, and resumed in another
number of processes with other workers, it trains on the same samples."""

from __future__ import annotations

import shutil

import pytest

from tests.data.mixed import six_formats, write_sources
from tests.training.test_processes import assert_close, curve, rows, run, statuses

CONFIG = """
from tests.data.mixed import mixed_config
from tests.training.conftest import SETTINGS

SOURCES = {sources!r}

def get_config():
    own = {{
        "data__weight_unit": "tokens", "pretrain__window_documents": 8,
        "pretrain__mixture__visual_qa": 0.0, "pretrain__eval_by_task": False,
    }}
    return mixed_config(SOURCES, **SETTINGS | own)
"""


@pytest.mark.slow
def test_a_run_on_six_sources_resumes_on_two_processes_with_the_same_samples(
    whole, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = write_sources(tmp_path / "sources")
    text = CONFIG.format(sources=six_formats(paths, tmp_path))

    def train(name, processes, *flags, **options):
        workdir = tmp_path / name
        if not workdir.exists():  # the parts that this stage builds on are there
            shutil.copytree(whole, workdir)
            shutil.rmtree(workdir / "pretrain")
            (workdir / "data.json").unlink()
        flags = ["--allow-change", *flags]
        return run(workdir, "pretrain", processes, config=text, flags=flags, **options)

    never_stopped = train("one", 1)
    assert statuses(never_stopped) == [0], never_stopped[0][1]
    stopped = train("two", 1, stop=(0, 1))
    assert statuses(stopped) == [75], stopped[0][1]
    resumed = train("two", 2, "--config.data.workers=1")
    assert statuses(resumed) == [0, 0], resumed[0][1]
    assert rows(stopped) + rows(resumed) == rows(never_stopped)
    losses = [_losses(tmp_path / name) for name in ("two", "one")]
    assert_close(*losses)
    every = set().union(*losses[0])
    assert {"loss/text/source/words", "loss/flow/source/web", "count/flow/edit"} <= every


def _losses(workdir):
    """Of every step, in all and by task and source."""
    lines = curve(workdir, "pretrain")
    return [{k: v for k, v in line.items() if k.startswith(("loss", "count/"))} for line in lines]
