"""Folders that are not quite what `unicom import` wants: what to give instead is said."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from unicom_jax.config import ConfigError
from unicom_jax.core.paths import LFS
from unicom_jax.interop.layouts import qwen
from unicom_jax.interop.layouts.description import DESCRIPTION, read_description, read_fields
from unicom_jax.interop.tensors import WeightsError, open_tensors

POINTER = f"{LFS}.github.com/spec/v1\noid sha256:00\nsize 12\n"
QWEN = {"model_type": "qwen2", "hidden_size": 32, "num_attention_heads": 2}


def refused(folder, words):
    with pytest.raises(ConfigError, match=words):
        read_description(folder)


def test_a_cache_of_the_hub_a_file_and_a_name_lead_to_the_folder(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / DESCRIPTION).write_text("{}", encoding="utf-8")
    refused(tmp_path / "models--a--b", rf"a cache of the Hub: give {snapshot}$")
    refused(snapshot / DESCRIPTION, rf"give the folder {snapshot}$")
    refused(tmp_path / "Qwen" / "Qwen2.5-7B", "there is no folder .*downloaded first")
    refused(tmp_path, "give a folder that holds it beside the weights")


def test_weights_that_were_not_fetched_linked_or_are_of_another_format_are_named(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_text(POINTER, encoding="utf-8")
    with pytest.raises(WeightsError, match="is a pointer of Git LFS; run git lfs pull"):
        open_tensors(tmp_path)
    weights.unlink()
    weights.symlink_to("../blobs/abc")
    with pytest.raises(WeightsError, match=r"is a link to \.\./blobs/abc, which is missing"):
        open_tensors(tmp_path)
    weights.unlink()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(WeightsError, match="pytorch_model.bin is no safetensors file"):
        open_tensors(tmp_path)
    save_file({"a": np.zeros(2, np.float32)}, weights)
    assert list(open_tensors(tmp_path).facts) == ["a"]


@pytest.mark.parametrize("size", [0, -32])
def test_a_size_that_cannot_be_is_named_by_its_key(tmp_path, size):
    with pytest.raises(ConfigError, match="hidden_size is .*; it has to be above 0"):
        read_fields({"hidden_size": size}, {"width": ("hidden_size", 4096)}, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_att"),
        (
            {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            "rope_theta is 500000.0, and 10000 in rope_parameters",
        ),
    ],
)
def test_what_versions_of_transformers_read_differently_is_refused(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        qwen.module_of({**QWEN, **changes}, tmp_path / DESCRIPTION)
    same = {"layer_types": ["full_attention"], "rope_theta": 1e4}
    assert qwen.module_of({**QWEN, **same}, tmp_path / DESCRIPTION).rope_theta == 1e4
