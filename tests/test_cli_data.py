"""`unicom data` as a user meets it: batches that are drawn, and data that are refused."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from PIL import Image as PilImage

from data_pipelines.sequences import show as drawing
from tests.test_cli import config_file, error_line  # noqa: F401 - config is a fixture
from unicom_jax.cli import main


@pytest.fixture
def folder(tmp_path):
    """Eight pictures with captions; `folder / "captions.jsonl"` may be damaged by a test."""
    path = tmp_path / "pictures"
    path.mkdir()
    rows = []
    for index in range(8):
        PilImage.fromarray(np.full((32, 32, 3), 20 * index, np.uint8)).save(path / f"{index}.png")
        rows.append({"image": f"{index}.png", "text": f"a gray of {20 * index}"})
    write_list(path, rows)
    return path


def write_list(path, rows) -> None:
    (path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_list(path) -> list[dict]:
    return [json.loads(line) for line in (path / "captions.jsonl").read_text().splitlines()]


def show(config, folder, out, *flags) -> list[str]:
    return [
        "data", "show", f"--config={config}", f"--out={out}", "--config.data.source.kind=folder",
        f"--config.data.source.path={folder}", "--config.data.source.held_out=0",
        "--config.pretrain.mixture.visual_qa=0.0",
        "--config.pretrain.mixture.edit=0.0", *flags,
    ]  # fmt: skip


@pytest.fixture
def undrawn(monkeypatch):
    """`unicom data show` makes its batch, and leaves out the seconds of drawing it."""
    monkeypatch.setattr(drawing, "show_batch", lambda batch, tokenizer, out, row: out)


def test_a_batch_of_a_folder_is_drawn(config, folder, tmp_path, capsys):
    out = tmp_path / "batch.png"
    assert main(show(config, folder, out, "--config.pretrain.sequence_length=32")) == 0
    assert f"step 0 of stage pretrain: {out}" in capsys.readouterr().out
    assert PilImage.open(out).size[0] > 1000


@pytest.mark.usefixtures("undrawn")
def test_one_unreadable_picture_is_reported_and_skipped(config, folder, tmp_path, caplog):
    (folder / "3.png").write_bytes(b"no picture")
    assert main(show(config, folder, tmp_path / "batch.png")) == 0
    lines = {record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING}
    (line,) = lines
    assert f"{folder / 'captions.jsonl'} line 4: cannot read image {folder / '3.png'}" in line
    assert "\n" not in line and "give a whole PNG" in line


def test_only_unreadable_pictures_stop_the_command(config, folder, tmp_path, capsys):
    for index in range(8):
        (folder / f"{index}.png").write_bytes(b"no picture")
    line = error_line(capsys, *show(config, folder, tmp_path / "batch.png"))
    assert line.startswith("unicom data show: ") and "cannot read image" in line


def test_empty_captions_stop_the_command(config, folder, tmp_path, capsys):
    write_list(folder, [{**row, "text": " "} for row in read_list(folder)])
    line = error_line(capsys, *show(config, folder, tmp_path / "batch.png"))
    assert "empty caption: give a text or remove the record" in line


@pytest.mark.usefixtures("undrawn")
def test_a_document_longer_than_a_row_is_named_with_the_fix(config, folder, tmp_path, capsys):
    rows = read_list(folder)
    rows[2]["text"] = "a gray " * 80
    write_list(folder, rows)
    line = error_line(capsys, *show(config, folder, tmp_path / "batch.png"))
    assert f"{folder / 'captions.jsonl'} line 3" in line and "raise sequence_length" in line
    skipped = "--config.pretrain.overlong=skip"
    assert main(show(config, folder, tmp_path / "batch.png", skipped)) == 0


def test_a_stage_without_rows_cannot_be_shown(config, tmp_path, capsys):
    line = error_line(capsys, "data", "show", f"--config={config}", "--stage=codec")
    assert "--stage=codec packs no rows; choose from align, pretrain" in line


@pytest.mark.parametrize("name", ["batch.xyz", "batch"])
def test_a_picture_of_an_unknown_format_is_refused_before_the_work(config, tmp_path, capsys, name):
    out = tmp_path / name
    line = error_line(capsys, "data", "show", f"--config={config}", f"--out={out}")
    assert f"--out={out}: " in line and line.endswith("is no format; end the name in .png")


def test_an_error_of_the_system_is_said_without_its_number(config, tmp_path, capsys):
    (tmp_path / "file").touch()
    line = error_line(capsys, "train", f"--config={config}", f"--workdir={tmp_path / 'file'}")
    assert line == f"unicom train: {tmp_path / 'file'}: File exists"


def test_no_stage_is_not_every_stage(config, tmp_path, capsys):
    line = error_line(
        capsys, "train", f"--config={config}", f"--workdir={tmp_path / 'run'}", "--stages="
    )
    assert "stage '' is unknown" in line


def test_a_broken_package_is_named(tmp_path, capsys):
    package = tmp_path / "openmoji.tgz"
    package.write_bytes(b"no archive")
    line = error_line(
        capsys, "data", "prepare", "openmoji", f"--out={tmp_path / 'o'}", f"--package={package}"
    )
    assert line.startswith("unicom data prepare: ") and str(package) in line


def test_a_package_is_refused_where_the_data_set_has_none(tmp_path, capsys):
    line = error_line(capsys, "data", "prepare", "scenes", f"--out={tmp_path}", "--package=x")
    assert "--package does nothing for scenes" in line
