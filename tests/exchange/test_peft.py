"""Adapters in PEFT's layout: names, numbers, and what merging them into the base gives."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.families.documents import lively
from unicom_jax.config import ConfigError
from unicom_jax.core.lora import Lora
from unicom_jax.exchange.export import export
from unicom_jax.exchange.written import Options
from unicom_jax.families.build import build_unified
from unicom_jax.runs import checkpoint as files
from unicom_jax.runs.items import CheckpointError
from unicom_jax.runs.weights import Choice

TARGETS = ("transformer/blocks/attention/(query|value)", "head/output")
LAYERS = {
    f"language_model.model.layers.{layer}.self_attn.{name}_proj"
    for layer in (0, 1)
    for name in ("q", "v")
}


@pytest.fixture(scope="module")
def adapted(run, tmp_path_factory):
    """The run with a stage `sft` of adapters over its weights."""
    workdir = shutil.copytree(run, tmp_path_factory.mktemp("lora") / "run")
    module = Lora(build_unified(files.read_config(workdir)), 2, 4.0, TARGETS)

    def scale(path, leaf):  # as every adapter of a stage has it
        return jnp.full_like(leaf, 2.0) if path[-1].key == "scale" else leaf

    params = jax.tree.map_with_path(scale, lively(module, seed=5))
    with files.open_manager(workdir / "sft" / "checkpoints") as manager:
        files.save(manager, 3, params, {"step": 3}, {"next_step": 3, "seed": 0})
        manager.wait_until_finished()
    return workdir


def written(workdir, folder, to, kind="", **options):
    export(workdir, folder, Options(to=to, choice=Choice(kind), **options))
    (tensors,) = folder.glob("*.safetensors")
    return load_file(tensors)


@pytest.fixture(scope="module")
def folders(adapted, tmp_path_factory):
    place = tmp_path_factory.mktemp("exports")
    return {
        "merged": written(adapted, place / "merged", "pytorch"),
        "base": written(adapted, place / "base", "pytorch", "base"),
        "adapters": written(adapted, place / "adapters", "peft"),
        "about": json.loads((place / "adapters" / "adapter_config.json").read_text()),
    }


def test_tensors_have_the_names_and_shapes_that_peft_reads(folders):
    expected = {
        f"base_model.model.{layer}.lora_{side}.weight"
        for layer in (*LAYERS, "head.output")
        for side in "AB"
    }
    assert set(folders["adapters"]) == expected
    query = folders["base"]["language_model.model.layers.0.self_attn.q_proj.weight"]
    layer = "base_model.model.language_model.model.layers.0.self_attn.q_proj"
    assert folders["adapters"][f"{layer}.lora_A.weight"].shape == (2, query.shape[1])
    assert folders["adapters"][f"{layer}.lora_B.weight"].shape == (query.shape[0], 2)


def test_the_description_names_each_layer_in_full_and_the_scale(folders):
    about = folders["about"]
    assert set(about["target_modules"]) == {*LAYERS, "head.output"}
    assert (about["peft_type"], about["r"], about["lora_alpha"]) == ("LORA", 2, 4.0)
    assert not about["fan_in_fan_out"] and about["bias"] == "none"


def test_the_base_with_the_adapters_is_what_the_merged_export_holds(folders):
    scale = folders["about"]["lora_alpha"] / folders["about"]["r"]
    for name, merged in folders["merged"].items():
        expected = folders["base"][name]
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{layer}.lora_A.weight" in folders["adapters"]:
            a, b = (folders["adapters"][f"{layer}.lora_{side}.weight"] for side in "AB")
            assert np.abs(b @ a).max() > 0.01
            expected = expected + scale * b @ a
        np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_torch_layers_wrapped_as_peft_does_give_what_merged_layers_give(folders):
    """W x + b + scale · B (A x), as in peft.tuners.lora.Linear."""
    torch = pytest.importorskip("torch")
    layer = "language_model.model.layers.1.self_attn.q_proj"
    x = torch.randn(3, folders["base"][f"{layer}.weight"].shape[1])
    name = f"base_model.model.{layer}"
    a, b = (torch.tensor(folders["adapters"][f"{name}.lora_{side}.weight"]) for side in "AB")
    base, merged = (
        torch.nn.functional.linear(
            x,
            torch.tensor(folders[kind][f"{layer}.weight"]),
            torch.tensor(folders[kind][f"{layer}.bias"]),
        )
        for kind in ("base", "merged")
    )
    wrapped = base + 2.0 * torch.nn.functional.linear(torch.nn.functional.linear(x, a), b)
    torch.testing.assert_close(wrapped, merged, rtol=1e-5, atol=1e-5)


def test_a_run_without_adapters_says_so(run, tmp_path):
    with pytest.raises(ConfigError, match="the weights have no adapters: .* without lora.rank"):
        export(run, tmp_path / "none", Options(to="peft"))
    with pytest.raises(CheckpointError, match="has no LoRA adapters; leave --weights"):
        export(run, tmp_path / "none", Options(choice=Choice("base")))
    assert not (tmp_path / "none").exists()
