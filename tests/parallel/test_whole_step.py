"""Each device computes its own rows: what the step of a stage exchanges does not say otherwise."""

from __future__ import annotations

import json

import pytest

from tests.parallel.programs import on_eight_devices
from tests.parallel.whole_step import ROWS
from tests.tiny import tiny_config

MESH = "slice=2,fsdp=4"
# With 96 slots the slots of two devices would be as many as the tokens of all images.
LONGER = {stage: {f"{stage}__sequence_length": 100} for stage in ("sft", "continue")}
CASES = {
    "pretrain": {"stage": "pretrain", "mesh": MESH},
    "align": {"stage": "align", "align__flow_weight": 0.0, "mesh": MESH},
    "sft": {"stage": "sft", "mesh": "slice=2,fsdp=2,tensor=2", **LONGER["sft"]},
    "query": {"stage": "pretrain", "unified__pathway": "query", "mesh": MESH},
    "query reads": {
        "stage": "align",
        "align__flow_weight": 0.0,
        "unified__pathway": "query",
        "mesh": MESH,
    },
    "continue": {"stage": "continue", "mesh": "slice=2,data=2,fsdp=2", **LONGER["continue"]},
}


def settings_of(case):
    stage, changes = case["stage"], {key: v for key, v in case.items() if "__" in key}
    return tiny_config(**changes)[stage]


@pytest.mark.parametrize(
    "name", ["pretrain", *(pytest.param(name, marks=pytest.mark.slow) for name in list(CASES)[1:])]
)
def test_no_exchange_of_a_step_holds_all_rows_and_each_row_costs_the_same(name):
    settings = settings_of(CASES[name])
    slots, images = settings.sequence_length, settings.images_per_row
    done = on_eight_devices("-m", "tests.parallel.whole_step", json.dumps(CASES[name]))
    few, many = (json.loads(done.stdout)[str(rows)] for rows in ROWS)
    for rows, found in zip(ROWS, (few, many), strict=True):
        everything = {rows, rows * images, rows * slots, rows * images * 4}  # 4: tokens of an image
        whole = [(kind, shape) for kind, shape in found["results"] if everything & set(shape)]
        assert found["results"] and not whole
    # Weights are exchanged once a step, activations once a row.
    assert many["bytes"]["weights"] == few["bytes"]["weights"]
    each = few["bytes"]["activations"] / ROWS[0]
    assert each == pytest.approx(many["bytes"]["activations"] / ROWS[1], rel=1e-3)


def test_devices_that_share_the_slots_of_a_row_share_its_pictures_too():
    done = on_eight_devices("-m", "tests.parallel.pictures")
    one_of_eight, alone = json.loads(done.stdout)
    assert one_of_eight == alone / 8 > 0
