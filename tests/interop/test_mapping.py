"""One table read in both directions: every weight has one place, and comes back as it went."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unicom_jax.core.module import ParamSpec, init_params
from unicom_jax.interop.mapping import Rule, places, prefixed
from unicom_jax.interop.tensors import WeightsError, open_tensors
from unicom_jax.interop.transfer import load_weights, store_weights

SPECS = {
    "table": ParamSpec((6, 4), (None, None)),
    "patch": ParamSpec((12, 5), (None, None)),
    "blocks": {
        "query": ParamSpec((3, 4, 8), ("layers", None, None)),
        "key": ParamSpec((3, 4, 2), ("layers", None, None)),
        "norm": ParamSpec((3, 4), ("layers", None)),
        "left": ParamSpec((3, 4, 2), ("layers", None, None)),
        "right": ParamSpec((3, 2, 2), ("layers", None, None)),
    },
}
TABLE = (
    Rule("table", "embed.weight"),
    Rule("patch", "conv.weight", axes=(2, 3, 1, 0), shape=(5, 3, 2, 2)),
    Rule(("blocks/query", "blocks/key"), "layers.{layer}.qk.weight", axes=(1, 0)),
    Rule("blocks/norm", "layers.{layer}.norm.weight"),
    Rule(("blocks/left", "blocks/right"), "layers.{layer}.out.weight", axes=(1, 0), along=1),
    Rule((), "zeros", shape=(3,)),
)


@pytest.fixture
def params():
    return init_params(SPECS, jax.random.key(0))


def test_every_foreign_tensor_has_a_name_and_a_shape():
    assert {name: place.shape for name, place in places(TABLE, SPECS).items()} == {
        "embed.weight": (6, 4),
        "conv.weight": (5, 3, 2, 2),
        **{f"layers.{i}.qk.weight": (10, 4) for i in range(3)},
        **{f"layers.{i}.norm.weight": (4,) for i in range(3)},
        **{f"layers.{i}.out.weight": (2, 6) for i in range(3)},
        "zeros": (3,),
    }


def test_weights_turn_stack_and_join_as_the_table_says(tmp_path, params):
    store_weights(tmp_path, TABLE, SPECS, params)
    state = load_file(tmp_path / "model.safetensors")
    query, key = (np.asarray(params["blocks"][name]) for name in ("query", "key"))
    assert np.array_equal(
        state["layers.1.qk.weight"], np.concatenate([query[1].T, key[1].T], axis=0)
    )
    left, right = (np.asarray(params["blocks"][name]) for name in ("left", "right"))
    assert np.array_equal(
        state["layers.2.out.weight"], np.concatenate([left[2].T, right[2].T], axis=1)
    )
    assert not state["zeros"].any()
    # (row, column, channel) of a flattened patch against (channel, row, column) of a convolution
    patch = np.asarray(params["patch"]).reshape(2, 2, 3, 5)
    assert np.array_equal(state["conv.weight"], patch.transpose(3, 2, 0, 1))


def test_parts_may_be_along_another_axis(tmp_path, params):
    specs = {"blocks": {name: SPECS["blocks"][name] for name in ("query", "key")}}
    specs["blocks"]["key"] = ParamSpec((3, 6, 8), ("layers", None, None))
    table = (
        Rule(("blocks/query", "blocks/key"), "layers.{layer}.w", axes=(1, 0), along=1),
    )  # theirs (8, 4 + 6): one projection of both inputs
    params = init_params(specs, jax.random.key(1))
    store_weights(tmp_path, table, specs, params)
    state = load_file(tmp_path / "model.safetensors")
    query, key = (np.asarray(params["blocks"][name]) for name in ("query", "key"))
    joined = np.concatenate([query[2].T, key[2].T], axis=1)
    assert np.array_equal(state["layers.2.w"], joined)
    loaded = load_weights(open_tensors(tmp_path), table, specs)
    assert np.array_equal(loaded["blocks"]["key"], key)
    assert np.array_equal(loaded["blocks"]["query"], query)


def test_a_round_trip_changes_no_bit(tmp_path, params):
    store_weights(tmp_path, TABLE, SPECS, params, shard_bytes=100)
    loaded = load_weights(open_tensors(tmp_path), TABLE, SPECS)
    for name in ("table", "patch"):
        assert np.array_equal(loaded[name], params[name])
    for name, leaf in params["blocks"].items():
        assert np.array_equal(loaded["blocks"][name], leaf)


def test_a_prefixed_table_serves_a_part_of_a_larger_model():
    found = places(prefixed(TABLE, "tower/", "vision."), {"tower": SPECS})
    assert set(found) == {f"vision.{name}" for name in places(TABLE, SPECS)}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE[1:], "no rule for 'table'"),
        ((*TABLE, Rule("table", "again")), "names 'table' twice"),
        ((*TABLE, Rule("tables", "more")), "'tables', which the model does not have"),
        ((Rule("table", "conv.weight"), *TABLE[1:]), "name the tensor 'conv.weight'"),
    ],
)
def test_a_table_that_does_not_fit_the_model_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        places(table, SPECS)


def damage(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("embed.weight"), "lacks embed.weight"),
        (lambda s: s.update(more=np.zeros(2, np.float32)), "more has no place"),
        (
            lambda s: s.update({"embed.weight": np.zeros((4, 6), np.float32)}),
            r"embed.weight has shape \(4, 6\), the config asks for \(6, 4\)",
        ),
        (
            lambda s: s.update({"embed.weight": np.zeros((6, 4), np.int32)}),
            "embed.weight has type I32; convert it",
        ),
        (lambda s: s.update(zeros=np.ones(3, np.float32)), "zeros is not zero"),
    ],
)
def test_a_folder_of_another_model_is_refused_before_anything_is_read(
    tmp_path, params, change, message
):
    store_weights(tmp_path, TABLE, SPECS, params)
    damage(tmp_path, change)
    with pytest.raises(WeightsError, match=message):
        load_weights(open_tensors(tmp_path), TABLE, SPECS)
