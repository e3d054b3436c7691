"""The commands of docs/data.md that lead from somebody's pictures to a trained model."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unicom_jax.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
WALKS = dict(re.findall(r"\*\*([\w ]+):\*\*\n\n```bash\n(.*?)```", PAGE, re.DOTALL))
FEW = [f"--config.{stage}.steps=3" for stage in ("encoder", "codec", "pretrain")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the page's scripts make."""
    folder = tmp_path_factory.mktemp("walk")
    config, pictures = re.findall(r"```python\n(from experiments.*?|import json.*?)```", PAGE, re.S)
    (folder / "my.py").write_text(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(pictures, "pictures.py", "exec"), {})
    return folder


def run(folder, walk, *which, more=()):
    """Runs the commands of a walk; of `unicom` those whose first words are among `which`."""
    words = {}
    for line in WALKS[walk].splitlines():
        given = shlex.split(line, comments=True)
        if given[0].startswith("DATA="):
            words["$DATA"] = shlex.split(given[0].removeprefix("DATA="))
        elif given[0] != "unicom":
            if not (folder / "shards" / "train-000.tar").exists():
                subprocess.run(given, cwd=folder, check=True)
        elif " ".join(given[1:]).startswith(which):
            command = [part for word in given[1:] for part in words.get(word, [word])]
            assert main([*command, *(more if command[0] == "train" else ())]) == 0


def test_the_page_has_a_walk_for_each_way_to_keep_pictures():
    assert list(WALKS) == ["A folder of pictures and a JSONL file", "Tar shards", "Parquet files"]


def test_a_walk_draws_a_row_of_the_pictures(folder, monkeypatch):
    monkeypatch.chdir(folder)
    run(folder, "A folder of pictures and a JSONL file", "data show")
    assert np.asarray(Image.open("row.png")).std() > 0
    Path("row.png").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("walk", ["Tar shards", "Parquet files"])
def test_a_walk_draws_a_row_and_trains_a_model(folder, walk, monkeypatch):
    monkeypatch.chdir(folder)
    run(folder, walk, "data show", "train", more=FEW)
    assert np.asarray(Image.open("row.png")).std() > 0
    (workdir,) = re.findall(r"--workdir=(\S+)", WALKS[walk])
    assert (folder / workdir / "pretrain" / "stage.json").is_file()
