"""Of activations keys and values are gathered, embedded words exchanged, nothing is replicated."""

from __future__ import annotations

import json

import pytest

from tests.parallel.collectives import HEAD_DIM, KV_HEADS, ROWS, SLOTS, WIDTH
from tests.parallel.programs import on_eight_devices
from unicom_jax.parallel.mesh import AXES, parse_mesh


@pytest.mark.parametrize(
    "mesh",
    [
        "fsdp=2,context=2,tensor=2",
        pytest.param("fsdp=4,tensor=2", marks=pytest.mark.slow),
        pytest.param("fsdp=4,context=2", marks=pytest.mark.slow),
    ],
)
def test_a_transformer_gathers_weights_and_along_context_keys_and_values(mesh):
    done = on_eight_devices("-m", "tests.parallel.collectives", mesh, cached=False)
    assert "Involuntary full rematerialization" not in done.stderr
    found = [(kind, tuple(shape)) for kind, shape in json.loads(done.stdout)]
    assert found
    sizes = dict(zip(AXES, parse_mesh(mesh, 8), strict=True))
    rows, slots = ROWS // sizes["fsdp"], SLOTS // sizes["context"]
    heads = KV_HEADS // sizes["tensor"]
    keys_and_values = (rows, SLOTS, heads, HEAD_DIM)
    moved = [shape for kind, shape in found if kind == "all-gather"]
    of_activations = {shape for shape in moved if {SLOTS, slots} & set(shape)}
    assert of_activations == ({keys_and_values} if sizes["context"] > 1 else set())
    # A device's vectors of the embedding table, in the pieces that each device has of them.
    pieces = (rows * slots, WIDTH // (sizes["fsdp"] * sizes["context"]))
    assert {shape for kind, shape in found if kind == "all-to-all"} == {pieces}
    assert not [kind for kind, _ in found if kind == "collective-permute"]


@pytest.mark.slow
@pytest.mark.parametrize("pathway", ["transfusion", "query"])
def test_in_a_whole_step_nothing_is_replicated_for_want_of_a_place(pathway):
    case = {"stage": "pretrain", "mesh": "fsdp=2,context=2,tensor=2", "steps": 1}
    case |= {"unified__pathway": pathway, "pretrain__accumulate": 2}
    done = on_eight_devices("-m", "tests.parallel.eight", json.dumps([case]), cached=False)
    assert "Involuntary full rematerialization" not in done.stderr
