"""Checkpoints in folders whose names look like patterns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.config import ConfigError
from unicom_jax.core.paths import as_path
from unicom_jax.runs import checkpoint as files
from unicom_jax.runs.workdir import check_name

WEIGHTS = {"w": np.arange(12.0, dtype=np.float32).reshape(3, 4)}
ABSTRACT = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32)}


@pytest.mark.parametrize(
    "name", ["lr[3e-4]", "[!a]", "a*b", "what?", "{x,y}", "**", "a b", "50%", "#1", "ünï", "-dash"]
)
def test_checkpoints_are_read_back_from_a_folder_of_any_name(tmp_path, name):
    workdir = tmp_path / name
    params = jax.tree.map(jnp.asarray, WEIGHTS)
    with files.open_manager(workdir / "stage" / "checkpoints") as manager:
        files.save(manager, 3, params, {"step": 3}, {"next_step": 3, "seed": 0})
        manager.wait_until_finished()
    files.save_import(workdir / "imported" / "checkpoints", params)
    for stage in ("stage", "imported"):
        found = files.restore_params(workdir, stage, ABSTRACT)
        np.testing.assert_array_equal(found["w"], WEIGHTS["w"])


def test_a_name_that_storage_cannot_write_is_refused():
    for name, words in (("a\\b", "backslash"), ("caf\udce9", "not UTF-8")):
        with pytest.raises(ConfigError, match=words):
            check_name(name)
    check_name("runs/lr[3e-4]")


def test_a_store_that_orbax_cannot_write_to_is_refused_before_it_is_asked(monkeypatch):
    monkeypatch.setattr(files, "KNOWS_S3", False)
    with pytest.raises(files.CheckpointError, match=r"s3://bucket/run: .* Orbax cannot"):
        files.open_manager(as_path("s3://bucket/run"))
