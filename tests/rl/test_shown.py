"""Rollouts as people see them: strips for TensorBoard, files for the report."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images import patchify
from tests.data.samples import picture
from unicom_jax.core.pixels import to_bytes, to_unit
from unicom_jax.evaluation.report import write_report
from unicom_jax.rl.samples import Originals, Samples
from unicom_jax.rl.scores import Rollout, Scores
from unicom_jax.rl.shown import CELL, rows_of, strip, write_rows

GROUP, PATCH = 2, 16
ORIGINALS = [picture(seed, 32, 32) for seed in (0, 1)]
DRAWN = [picture(seed, 32, 32) for seed in range(2, 6)]
WORDS = {7: "a", 8: "red", 9: "ring"}


def patches_of(pictures):
    return np.stack([patchify(one, PATCH) for one in pictures])


def rollout(drawn=True):
    total = np.array([0.5, 0.25, 0.0, 1.0], np.float32)
    samples = Samples(
        tokens=np.array([[7, 8, -1], [7, 9, -1], [-1, -1, -1], [7, 8, 9]]),
        patches=np.asarray(to_unit(patches_of(DRAWN))) if drawn else None,
    )
    originals = Originals(
        np.repeat(patches_of(ORIGINALS), GROUP, axis=0), np.full((4, 2), 2, np.int32)
    )
    parts = {"scenes": total, "gate": np.ones(4, np.float32)}
    return Rollout(originals, samples, Scores(total, total, total, parts, total, total))


def rows(**how):
    return rows_of(rollout(**how), GROUP, 2, lambda ids: " ".join(WORDS[i] for i in ids), PATCH)


def test_a_row_is_a_picture_with_the_samples_of_its_group():
    first, second = rows()
    np.testing.assert_array_equal(first.original, ORIGINALS[0])
    np.testing.assert_array_equal(second.original, ORIGINALS[1])
    assert [one.caption for one in first.samples] == ["a red", "a ring"]
    assert [one.reward for one in second.samples] == [0.0, 1.0]
    assert second.samples[1].parts == {"scenes": 1.0, "gate": 1.0}
    for one, drawn in zip([*first.samples, *second.samples], DRAWN, strict=True):
        np.testing.assert_array_equal(one.drawing, drawn)


def test_drawings_are_shown_as_rewards_round_them():
    values = np.linspace(-1.2, 1.2, 12 * PATCH**2, dtype=np.float32).reshape(1, 4, -1)
    values = np.repeat(values, 4, axis=0)
    found = rollout().replace(samples=dataclasses.replace(rollout().samples, patches=values))
    shown = rows_of(found, GROUP, 1, lambda ids: "", PATCH)[0].samples[0].drawing
    np.testing.assert_array_equal(patchify(shown, PATCH), np.asarray(to_bytes(values))[0])


def test_a_strip_has_the_original_and_every_drawing_side_by_side():
    made = strip(rows()[0])
    assert made.shape[1] == 3 * CELL and made.shape[0] > CELL and made.dtype == np.uint8
    middle = made[CELL // 4, CELL // 4 :: CELL].astype(int)
    for found, source in zip(middle, [ORIGINALS[0], *DRAWN[:2]], strict=True):
        assert np.abs(source.astype(int) - found).sum(-1).min() <= 3  # one of its pixels
    below = made[CELL:]
    assert (below[:, CELL:] < 128).any()  # reward and caption


def test_captions_that_are_not_drawn_have_strips_and_files_too(tmp_path):
    assert strip(rows(drawn=False)[0]).shape[1] == 3 * CELL
    write_rows(tmp_path / "rollouts", 3, rows(drawn=False))
    made = json.loads((tmp_path / "rollouts/rollouts.json").read_text())
    assert made["rows"][0]["samples"][0]["drawing"] is None


def test_the_report_shows_the_newest_rollouts_of_a_stage(tmp_path):
    folder = tmp_path / "g4u" / "rollouts"
    (tmp_path / "g4u").mkdir()
    (tmp_path / "g4u/stage.json").write_text(json.dumps({"steps": 9}))
    write_rows(folder, 3, rows())
    write_rows(folder, 9, rows())
    with Image.open(folder / "1_1.png") as image:
        np.testing.assert_array_equal(np.asarray(image), DRAWN[3])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    section = page[page.index('<section id="rollouts">') :].split("</section>")[0]
    for text in ("g4u", "step 9", "a red ring", "(nothing)", "<b>0.5</b>"):
        assert text in section
    assert section.count("<img") == 6


def test_a_run_without_rollouts_has_no_such_section(tmp_path):
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain/stage.json").write_text(json.dumps({"steps": 9}))
    assert "What the captioner wrote" not in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_missing_picture_of_rollouts_is_named(tmp_path):
    (tmp_path / "u4g").mkdir()
    (tmp_path / "u4g/stage.json").write_text(json.dumps({"steps": 9}))
    write_rows(tmp_path / "u4g" / "rollouts", 3, rows())
    (tmp_path / "u4g/rollouts/0.png").unlink()
    with pytest.raises(ValueError, match="0.png: unreadable picture"):
        write_report(tmp_path)
