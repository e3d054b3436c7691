"""Benchmarks end with one line when their arguments are wrong."""

from __future__ import annotations

import pytest

from experiments.benchmarks import denoising, step, variety

QUICK = "--config=experiments/quickstart.py"


@pytest.mark.parametrize(
    ("module", "flags", "status", "message"),
    [
        (denoising, ["--workdir=nothing"], 1, "denoising: nothing/config.json"),
        (denoising, ["--workdir=nothing", "--scenes=1"], 2, "must be at least 4"),
        (variety, ["--checkpoint=nothing"], 1, "variety: nothing/config.json"),
        (variety, ["--checkpoint=s3:nothing", "--drawings=0"], 2, "--drawings: must be at least 1"),
        (step, ["--config=nothing.py", "--stage=pretrain"], 1, "nothing.py"),
        (step, [QUICK, "--stage=pretrain", "--config.pretrain.batch=4"], 1, "pretrain.batch"),
        (step, ["--config=experiments/uae_quick.py", "--stage=u4g"], 1, "samples texts"),
    ],
)
def test_wrong_arguments_end_in_one_line(monkeypatch, capsys, module, flags, status, message):
    monkeypatch.setattr("sys.argv", [module.__name__.rpartition(".")[2], *flags])
    with pytest.raises(SystemExit) as ended:
        module.main()
    said = capsys.readouterr().err if status == 2 else ended.value.code
    assert message in said and "Traceback" not in said
