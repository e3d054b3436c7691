"""Held-out losses: the mean over batches, and of each task by itself."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.training.conftest import go
from tests.training.test_step import batch, trainer
from tests.training.toy import Stream
from unicom_jax.config import KEYS
from unicom_jax.config.key import checked
from unicom_jax.training.held_out import HeldOut


def test_terms_are_means_over_all_batches_and_tasks_are_named_behind_them():
    one = trainer()
    state, read = one.init_state(), []

    def batches(scale):
        def opened(start):
            read.append(scale)
            stream = Stream(start)
            take = type(stream).__next__

            class Scaled(Stream):
                def __next__(self):
                    made = take(self)
                    made["y"], made["weight"] = scale * made["y"], np.minimum(made["weight"], scale)
                    return made

            return Scaled(start)

        return opened

    held_out = HeldOut(one, lambda state, frozen, data: data, batches(2), 2, {"small": batches(1)})
    values = held_out.evaluate(state, {})
    assert values == held_out.evaluate(state, {}) and read == [2, 1]  # read once, then kept
    terms = one.eval_step()
    sums = {}
    for number in range(2):
        made = batch()
        made["x"], made["y"] = made["x"] + np.float32(number), 2 * made["y"]
        for name, pair in terms(state.params, {}, made).items():
            sums[name] = np.add(sums.get(name, 0.0), [float(x) for x in pair])
    expected = {f"eval/{name}": total / count for name, (total, count) in sums.items()}
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-5)
    assert values["eval/loss"] == pytest.approx(
        expected["eval/main"] + 0.5 * expected["eval/rare"], rel=1e-5
    )
    # No row of the task has the weight that the term `rare` is of.
    assert values.keys() - {*expected, "eval/loss"} == {"eval/main/small"}
    assert values["eval/main/small"] != pytest.approx(values["eval/main"])


def test_a_term_of_no_token_is_left_out():
    """The held-out rows of a mixture without drawings have no flow loss, not one of 0."""
    one = trainer()

    class Common(Stream):
        def __next__(self):
            made = super().__next__()
            return {**made, "weight": np.minimum(made["weight"], 1)}

    held_out = HeldOut(one, lambda state, frozen, data: data, Common, 2)
    values = held_out.evaluate(one.init_state(), {})
    assert values.keys() == {"eval/loss", "eval/main"}
    assert values["eval/loss"] == pytest.approx(values["eval/main"])


def test_a_run_reports_each_task_of_its_mixture_on_the_terms_that_it_has(whole):
    lines = [json.loads(line) for line in (whole / "pretrain" / "metrics.jsonl").open()]
    (line,) = [line for line in lines if "eval/loss" in line]
    tasks = {"text_to_image", "visual_qa", "edit"}
    assert {name.split("/")[2] for name in line if name.startswith("eval/text/")} == tasks
    assert line["eval/text/visual_qa"] != line["eval/text/text_to_image"]
    drawn = {name for name in line if name.startswith("eval/flow/") and "/t0." not in name}
    assert drawn == {"eval/flow/text_to_image", "eval/flow/edit"}


def test_a_run_reports_each_of_its_sources(whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "pretrain")
    sources = [
        {"kind": "scenes", "name": "few", "size": 20, "tasks": "text_to_image", "weight": 0.5},
        {"kind": "scenes", "name": "many", "tasks": {"visual_qa": 3, "edit": 2}, "weight": 0.5},
    ]
    go(
        workdir,
        "pretrain",
        data__source__size=KEYS["data.source.size"].default,
        data__sources=checked("data.sources", KEYS["data.sources"], sources),
        **{f"pretrain__mixture__{task}": 0.0 for task in ("text_to_image", "visual_qa", "edit")},
        pretrain__eval_by_source=True,
    )
    lines = [json.loads(line) for line in (workdir / "pretrain" / "metrics.jsonl").open()]
    (line,) = [line for line in lines if "eval/loss" in line]
    text = {name for name in line if name.startswith("eval/text/source/")}
    assert text == {"eval/text/source/few", "eval/text/source/many"}
    assert line["eval/text/source/many"] == pytest.approx(
        line["eval/text/visual_qa"], rel=0.5
    )  # an edit has few words to learn
    (shares,) = [line for line in lines if line["step"] == 4 and "data/filled" in line]
    assert shares["data/source/few"] + shares["data/source/many"] == pytest.approx(1)
    assert shares["data/source/few"] == shares["data/task/text_to_image"]
