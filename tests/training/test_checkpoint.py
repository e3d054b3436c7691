"""Checkpoints that cannot be used: one line each that names the path and the fix."""

from __future__ import annotations

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.conftest import go
from unicom_jax.core.layers import Linear
from unicom_jax.core.module import Module
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.runs import checkpoint as files
from unicom_jax.training.checkpoint import Position, restore_newest, save_state
from unicom_jax.training.metrics import MetricWriter
from unicom_jax.training.step import Stage, Trainer


class Layer(Linear):
    """A stand-in model."""

    def specs(self):
        return {"layer": super().specs()}


def trainer(width: int = 4, seed: int = 0, ema_decay: float = 0.5) -> Trainer:
    module: Module = Layer(3, width)
    stage = Stage("toy", module, lambda *args: {}, {}, freeze=("layer/bias",))
    optimizer = optax.apply_if_finite(optax.adam(1e-3), 5)
    return Trainer(stage, optimizer, lambda step: 1e-3, make_mesh(), seed, ema_decay=ema_decay)


def state_at(one: Trainer, step: int):
    """A state with a value of its own in every leaf."""
    leaves, tree = jax.tree.flatten(one.init_state())
    filled = [jnp.full_like(leaf, step + i / 8) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, filled).replace(step=jnp.asarray(step, jnp.int32))


@pytest.fixture
def directory(tmp_path):
    """STAGE/checkpoints with steps 2 and 4."""
    one = trainer()
    path = tmp_path / "toy" / "checkpoints"
    with files.open_manager(path) as manager:
        for step in (2, 4):
            save_state(manager, one, Position(step), state_at(one, step))
    return path


def newest(directory, one: Trainer | None = None):
    """(the state that is restored, what is said)"""
    said: list[str] = []
    with files.open_manager(directory) as manager:
        found = restore_newest(manager, one or trainer(), said.append)
        return found and found[0], said


def files_of(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_is_saved_is_restored_to_the_last_bit(directory):
    state, said = newest(directory)
    expected = state_at(trainer(), 4)
    # Frozen weights are stored once, with the averaged ones.
    chex.assert_trees_all_equal(state, expected, strict=True)
    assert said == []


def test_the_weights_for_use_are_the_averaged_ones(directory):
    params = files.restore_params(directory.parents[1], "toy", Layer(3, 4).abstract())
    expected = state_at(trainer(), 4)
    np.testing.assert_array_equal(params["layer"]["kernel"], expected.ema["layer"]["kernel"])
    np.testing.assert_array_equal(params["layer"]["bias"], expected.params["layer"]["bias"])


def test_without_checkpoints_there_is_nothing_to_restore(tmp_path):
    assert newest(tmp_path / "checkpoints") == (None, [])


def empty(folder):
    for path in files_of(folder):
        path.write_bytes(b"")


def halve(folder):
    for path in files_of(folder):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("item", [files.PARAMS, files.TRAIN, files.POSITION])
@pytest.mark.parametrize("damage", [shutil.rmtree, empty, halve])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(directory, item, damage):
    damage(directory / "4" / item)
    state, said = newest(directory)
    assert int(state.step) == 2
    (line,) = said
    assert str(directory / "4" / item) in line and "\n" not in line
    assert f"delete the folder {directory / '4'} to fall back" in line


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(directory):
    shutil.rmtree(directory / "4" / files.PARAMS)
    one = trainer()
    with files.open_manager(directory) as manager:
        save_state(manager, one, Position(4), state_at(one, 4))
    state, said = newest(directory)
    assert int(state.step) == 4 and said == []


def test_when_all_are_damaged_the_stage_is_not_trained_anew(directory):
    for step in ("2", "4"):
        shutil.rmtree(directory / step / files.TRAIN)
    with pytest.raises(files.CheckpointError, match="delete the folder to train this stage again"):
        newest(directory)


def test_a_checkpoint_of_another_seed_is_not_continued(directory):
    with pytest.raises(files.OtherRunError) as caught:
        newest(directory, trainer(seed=7))
    line = str(caught.value)
    assert str(directory) in line and "trained with seed 0, not 7" in line
    assert "set --config.seed=0 or use a new --workdir" in line and "\n" not in line


def test_a_checkpoint_of_other_sizes_is_not_continued(directory):
    with pytest.raises(files.OtherRunError) as caught:
        newest(directory, trainer(width=5))
    line = str(caught.value)
    assert str(directory / "4" / "params") in line and "\n" not in line
    assert "layer/bias is (4,) there and (5,) in the config" in line
    assert "use the config it was trained with, or a new --workdir" in line


# ---- reading without training -------------------------------------------------------------


def test_a_stage_that_was_never_trained_is_named_with_its_command(tmp_path):
    with pytest.raises(files.CheckpointError, match="run `unicom train` for stage 'encoder' first"):
        files.restore_params(tmp_path, "encoder", Layer(3, 4).abstract())


@pytest.fixture
def two_parts(tmp_path):
    """A working directory whose stage `toy` has weights `left` and `right`."""
    tree = {"left": {"kernel": jnp.ones((3, 4))}, "right": {"kernel": jnp.full((2, 5), 7.0)}}
    with files.open_manager(tmp_path / "toy" / "checkpoints") as manager:
        files.save(manager, 1, tree, {"step": jnp.zeros(())}, {"next_step": 1})
    return tmp_path, jax.eval_shape(lambda: tree)


def test_only_the_parts_that_are_asked_for_are_read(two_parts):
    workdir, abstract = two_parts
    read = files.restore_params(workdir, "toy", abstract, parts=("right",))
    assert list(read) == ["right"]
    np.testing.assert_array_equal(read["right"]["kernel"], np.full((2, 5), 7.0))


def test_a_part_that_is_not_read_must_have_the_sizes_of_the_config_too(two_parts):
    workdir, abstract = two_parts
    other = {**abstract, "left": {"kernel": jax.ShapeDtypeStruct((6, 4), jnp.float32)}}
    with pytest.raises(files.OtherRunError, match=r"left/kernel is \(3, 4\) there and \(6, 4\)"):
        files.restore_params(workdir, "toy", other, parts=("right",))


def test_a_part_that_was_never_stored_is_named_where_all_is_read(two_parts):
    workdir, abstract = two_parts
    more = {**abstract, "centre": {"kernel": jax.ShapeDtypeStruct((6, 4), jnp.float32)}}
    with pytest.raises(files.OtherRunError, match="has no centre: .* leave its stage out"):
        files.restore_params(workdir, "toy", more)


def test_weights_of_other_sizes_are_refused(directory):
    with pytest.raises(files.OtherRunError, match=r"layer/kernel is \(3, 4\) there and \(6, 4\)"):
        files.restore_params(directory.parents[1], "toy", Layer(6, 4).abstract())


@pytest.mark.parametrize("damage", [shutil.rmtree, empty, halve])
def test_damaged_weights_are_named_with_the_folder_to_delete(directory, damage):
    damage(directory / "4" / files.PARAMS)
    with pytest.raises(files.CheckpointError) as caught:
        files.restore_params(directory.parents[1], "toy", Layer(3, 4).abstract())
    line = str(caught.value)
    assert f"delete the folder {directory / '4'}" in line and "\n" not in line


def test_a_save_that_was_cut_off_does_not_count(directory):
    (directory / "6.orbax-checkpoint-tmp").mkdir()
    assert files.stage_steps(directory.parents[1], "toy") == [2, 4]


def test_a_folder_without_configuration_is_no_checkpoint(tmp_path):
    with pytest.raises(files.CheckpointError, match="give the --workdir of a `unicom train` run"):
        files.read_config(tmp_path)


def test_a_configuration_cut_short_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(files.CheckpointError, match="is not JSON .* restore it from a copy"):
        files.read_config(tmp_path)


def test_a_stage_asks_for_the_one_it_builds_on(tmp_path):
    with pytest.raises(files.CheckpointError, match="no checkpoint of it: train encoder first"):
        go(tmp_path, "codec")


# ---- metrics ------------------------------------------------------------------------------


def test_metrics_written_after_the_checkpoint_are_forgotten(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": float(step)})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')  # cut short by a crash
    with MetricWriter(tmp_path, first_step=2) as writer:
        writer.write(3, {"loss": 30.0})
    rows = [json.loads(line) for line in path.open()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
